"""`verify`: can the numbers of a finished run be traced to the bytes that made them?

Everything that has a checksum is hashed again, the language model included; then every SAE is evaluated again on the
first held-out contexts, and each document's sums are held against those of the records.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sae_bench.errors import UserError
from sae_bench.evaluation.loop import Candidate, contexts_at_once, evaluate
from sae_bench.evaluation.task import Task, token_tasks
from sae_bench.leaderboard.bootstrap import Design
from sae_bench.leaderboard.replicates import metric_replicates
from sae_bench.leaderboard.tables import board_files
from sae_bench.lm.contexts import site_means
from sae_bench.lm.corpus import corpus_hash
from sae_bench.lm.fingerprint import differences, fingerprint
from sae_bench.lm.sites import site_of
from sae_bench.progress import Progress
from sae_bench.records.files import digest_of, read_sealed
from sae_bench.records.run_folder import SAE_DESCRIPTION, RunFolder, changed_file
from sae_bench.records.schema import BY_RATERS, NOT_APPLICABLE, Record, Score, read_record
from sae_bench.runs.begun import FORMAT
from sae_bench.runs.config import RunConfig
from sae_bench.runs.home import at_home, hashes_of_plugin
from sae_bench.runs.sources import load_model, token_stream
from sae_bench.runs.verify_latents import verify_latents
from sae_bench.saes.save import description_of, load_sae

TOLERANCE = 1e-3
"""Of a document's sum, relative to the largest: what other batch sizes and other machines' rounding may change."""

SCORE_TOLERANCE = 1e-2
"""Of a score: latents that rounding brings across a threshold count in shares of few latents."""

Finding = tuple[str, str | None]
"""Something looked at, and what is wrong with it; None: nothing."""


def verify(folder: RunFolder, progress: Progress, n_contexts: int = 16) -> Iterator[Finding]:
    """Check a run's files, its language model and data, and, on a sample, its numbers.

    Raises:
        UserError: there is no run in the folder.
    """
    manifest = read_sealed(folder.path / "run.json")
    config = RunConfig(**manifest["config"])
    digest = config.evaluation_hash if manifest.get("format") == FORMAT else digest_of(manifest["config"])
    yield ("run.json", None if manifest["config_hash"] == digest else "its settings have another hash")
    config = at_home(config, folder, manifest)
    yield from _plugin_findings(
        manifest, at_home(config.model_copy(update={"plugins": tuple(manifest["plugins"])}), folder, manifest)
    )
    records: dict[tuple[str, str], Record] = {}
    for path in sorted((folder.path / "records").glob("*.json")):
        try:
            record = read_record(path)
        except UserError as error:
            yield (path.name, str(error))
            continue
        records[record.sae.id, record.task] = record
        same = record.provenance.config_hash == manifest["config_hash"]
        yield (path.name, None if same else "made with other settings")
    whole = []
    for sae_id in manifest["saes"]:
        problem = weights_problem(folder, sae_id, [r for (of, _), r in records.items() if of == sae_id])
        whole += [] if problem else [sae_id]
        yield (f"weights of {sae_id}", problem)
    for (sae_id, task), record in records.items():
        yield (f"scores of {sae_id}.{task}", score_problem(record))
    yield from verify_latents(folder, list(records.values()))
    if records:
        yield ("leaderboard", _board_problem(folder, list(records.values())))
        yield from verify_numbers(folder, config, records, whole, progress, n_contexts, manifest=manifest)


def _plugin_findings(manifest: Mapping[str, Any], home: RunConfig) -> Iterator[Finding]:
    for (plugin, was), path in zip(manifest["plugins"].items(), home.plugins, strict=True):
        files = was if isinstance(was, dict) else {Path(plugin).name: was}  # once the plugin's own file alone
        try:
            now = hashes_of_plugin(path, files)
        except UserError as error:
            yield (f"plugin {plugin}", str(error))
            continue
        changed = [file for file, digest in files.items() if now.get(file) != digest]
        yield (f"plugin {plugin}", f"{', '.join(changed)}: missing or changed since the run" if changed else None)


def weights_problem(folder: RunFolder, sae_id: str, records: Sequence[Record]) -> str | None:
    """What is wrong with an SAE's files, or with its records' weights; None: nothing."""
    try:
        description = read_sealed(folder.sae_path(sae_id) / SAE_DESCRIPTION)
    except UserError as error:
        return str(error)
    if (name := changed_file(folder.sae_path(sae_id), description)) is not None:
        return f"{name} is not what was saved"
    if any(record.sae.weights_sha256 != description["sha256"] for record in records):
        return "records were made from other weights"
    return None if records else "no record of it"


def score_problem(record: Record) -> str | None:
    """Scores that are ratios of the record's own sums have to be these ratios."""
    for name, score in record.scores.items():
        if score.formula is None or score.value is None:
            continue
        value = float(metric_replicates(record, name, Design(1, 1))[0])
        if not math.isclose(value, score.value, rel_tol=1e-9, abs_tol=1e-12):
            return f"{name} is {score.value:.6g}, its sums give {value:.6g}"
    return None


def _board_problem(folder: RunFolder, records: list[Record]) -> str | None:
    for name, content in board_files(records).items():
        path = folder.path / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            return f"{name} is not what the records give"
    return None


def verify_numbers(
    folder: RunFolder,
    config: RunConfig,
    records: Mapping[tuple[str, str], Record],
    saes: Sequence[str],
    progress: Progress,
    n_contexts: int | None = None,
    siblings_of: Sequence[str] | None = None,
    *,
    manifest: Mapping[str, Any] | None = None,
) -> Iterator[Finding]:
    """Measure some SAEs of a folder again, on the first contexts or on all, and hold records against what comes out.

    `siblings_of`: SAEs whose weights are there too, of which some are other seeds of those (default: the same SAEs).

    Raises:
        UserError: the model, the text or the weights cannot be had.
    """
    lm = load_model(config, progress)
    if manifest is not None and "model" in manifest:
        changed = differences(manifest["model"], lm.identity())
        yield ("language model", f"is another one than in the run: {'; '.join(changed)}" if changed else None)
        same = config.world is not None or manifest["dataset_sha256"] == corpus_hash(config.dataset)
        yield ("corpus", None if same else "is not what the run was made from")
    stream = token_stream(lm, config, "eval", config.n_held_out)
    stream.read()
    now: dict[str, str | int | None] = {
        "model_sha256": lm.weight_hash(),
        "tokenizer_sha256": lm.tokenizer_hash(),
        "eval_fingerprint": stream.fingerprint,
    }
    if all(record.provenance.model_fingerprint for record in records.values()):
        now = {"model_fingerprint": fingerprint(lm.identity()), **now}
    if all(record.provenance.eval_tokens for record in records.values()):
        now |= {"eval_tokens": stream.n_delivered, "eval_documents": stream.n_documents}
    for what, digest in now.items():
        was = {getattr(record.provenance, what) for record in records.values()}
        yield (what, None if was == {digest} else f"is now {str(digest)[:12]}, was {', '.join(sorted(map(str, was)))}")
        if what == "eval_fingerprint" and was != {digest}:
            return
    candidates: dict[str, Candidate[Task]] = {}
    loaded = cache(lambda name: load_sae(folder.sae_path(name), lm.device))
    by_hash = {
        record.sae.weights_sha256: name for (name, _), record in records.items() if name in (siblings_of or saes)
    }
    for sae_id in saes:
        measured = {task: record for (of, task), record in records.items() if of == sae_id and not record.failure}
        left_out = [record.task for record in measured.values() if record.measured_on == BY_RATERS]  # people, not now
        left_out += [record.task for record in measured.values() if record.not_measured == NOT_APPLICABLE]
        names = [task for task in measured if task not in left_out]
        tasks = {name: task() for name, task in token_tasks(names).items()}  # a judge is not asked again
        if tasks:
            site = site_of(description_of(folder.sae_path(sae_id)))
            hashes = dict.fromkeys(digest for name in tasks for digest in records[sae_id, name].siblings)
            siblings = [loaded(by_hash[digest]) for digest in hashes if digest in by_hash]
            candidates[sae_id] = Candidate(loaded(sae_id), site, tasks, siblings)
    if not candidates:
        return
    sites = list(dict.fromkeys(candidate.site for candidate in candidates.values()))
    size = contexts_at_once(lm, config.context_size)
    means = site_means(lm, stream, sites, size, progress)  # of the whole set, as the records have it
    n_tokens = config.n_held_out if n_contexts is None else n_contexts * (config.context_size - 1)
    sample = token_stream(lm, config, "eval", min(config.n_held_out, n_tokens))
    sample.read()
    evaluate(lm, sample, list(candidates.values()), progress, means)
    # The last document may have been cut, and others have texts beyond the sample that repeat theirs.
    complete = [number for number, size in sorted(sample.sizes.items()) if size == stream.sizes[number]]
    whole = sample.n_delivered == stream.n_delivered
    for sae_id, candidate in candidates.items():
        for task in candidate.tasks:
            problem = _difference(candidate, task, records[sae_id, task], complete, whole=whole)
            yield (f"{task} of {sae_id}, {sample.n_documents} documents", problem)


def _difference(
    candidate: Candidate[Task], task: str, record: Record, complete: Sequence[int], *, whole: bool
) -> str | None:
    """What differs between a record's documents and the same ones measured now, if they were measured completely."""
    if task in candidate.failures:
        return f"cannot be evaluated now: {candidate.failures[task]}"
    result = candidate.results[task]
    if all(score.value is None for scores in (record.scores, result.scores) for score in scores.values()):
        return None  # there was nothing to measure, as of other seeds where there is one
    if not result.by_document and not result.per_latent:
        if all(score.value is None for score in record.scores.values()):
            return None  # it says nothing
        return "it keeps neither sums per document nor values per latent: nothing to compare"
    for name, counts in result.per_latent.items():
        now, then = np.array(counts), np.array(record.per_latent.get(name, []))
        if now.shape != then.shape:
            return f"{name} has {len(then)} latents, the SAE has {len(now)}"
        slack = 0.01 * np.abs(then) + 2  # what rounding may bring across a threshold
        if np.any(now > then + slack) or (whole and np.any(now < then - slack)):
            return f"{name} of some latents differs"
    for name, sums in result.by_document.items():
        if not complete:
            return "the sample holds no whole document: raise --contexts"
        of_record = record.by_document.get(name, [])
        if len(of_record) <= complete[-1]:
            return f"{name} has {len(of_record)} documents"
        now, then = np.array(sums)[complete], np.array(of_record)[complete]
        if np.abs(now - then).max() > TOLERANCE * max(np.abs(then).max(), 1.0):
            at = int(np.abs(now - then).argmax())
            return f"{name} of document {complete[at]} is {now[at]:.6g}, the record has {then[at]:.6g}"
    return _difference_of_scores(result.scores, record.scores) if whole else None


def _difference_of_scores(now: Mapping[str, Score], then: Mapping[str, Score]) -> str | None:
    """What differs between scores that were measured on the same tokens; of some, records keep no sums to compare."""
    if strange := sorted(then.keys() - now.keys()):
        return f"{strange[0]} is in the record, and is not measured"
    for name, score in now.items():
        of_record = then.get(name)
        if of_record is None:
            return f"{name} is not in the record"
        for what, is_now, was in (
            ("", score.value, of_record.value),
            ("the error of ", score.stderr, of_record.stderr),
        ):
            if (is_now is None) != (was is None):
                return f"{what}{name} is {is_now}, the record has {was}"
            if is_now is not None and was is not None and not abs(is_now - was) <= SCORE_TOLERANCE * max(abs(was), 1.0):
                return f"{what}{name} is {is_now:.6g}, the record has {was:.6g}"
    return None
