"""`verify` and `submit` on numbers: SAEs are measured again, and their records held against what comes out.

That is done on the held-out tokens and on the texts that tasks bring. People and judges are not asked again.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from sae_bench.errors import UserError
from sae_bench.evaluation.loop import Candidate, contexts_at_once, evaluate
from sae_bench.evaluation.task import BaseTask, OwnText, Task, TextTask, read_texts, text_tasks, token_tasks
from sae_bench.evaluation.text_loop import measure_texts
from sae_bench.lm.activations import ActivationModel, ContextStream
from sae_bench.lm.contexts import site_means
from sae_bench.lm.corpus import corpus_hash
from sae_bench.lm.fingerprint import differences, fingerprint
from sae_bench.lm.sites import site_of
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import BY_RATERS, NOT_APPLICABLE, Record
from sae_bench.runs.config import RunConfig
from sae_bench.runs.differences import difference_on_texts, difference_on_tokens
from sae_bench.runs.records import inapplicable
from sae_bench.runs.sources import language_model, load_model, token_stream
from sae_bench.saes.save import description_of, load_sae

Finding = tuple[str, str | None]
"""Something looked at, and what is wrong with it; None: nothing."""

Records = Mapping[tuple[str, str], Record]
"""By SAE and task."""

T = TypeVar("T", bound=BaseTask)


def verify_numbers(
    folder: RunFolder,
    config: RunConfig,
    records: Records,
    saes: Sequence[str],
    progress: Progress,
    n_contexts: int | None = None,
    *,
    on_texts: Sequence[str] | None = None,
    siblings_of: Sequence[str] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Iterator[Finding]:
    """Measure some SAEs of a folder again, and hold records against what comes out.

    Args:
        n_contexts: the first held-out contexts that are measured; all by default.
        on_texts: those of the SAEs that are measured on the texts of tasks, too; all by default.
        siblings_of: SAEs whose weights are there too, of which some are other seeds of those (default: the same SAEs).
        manifest: run.json, whose language model and corpus are held against those that are there.

    Raises:
        UserError: the model, the held-out text or the weights cannot be had.
    """
    on_texts = saes if on_texts is None else on_texts
    texts: dict[str, OwnText] = {}
    for name in sorted({task for sae in on_texts for task in text_tasks(measurable(records, sae))}):
        try:
            texts |= read_texts([name], config)
        except UserError as error:  # a package is missing, or a file: all else can be measured
            yield (f"text of {name}", str(error))
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
    loaded = cache(lambda name: load_sae(folder.sae_path(name), lm.device))
    siblings = {
        record.sae.weights_sha256: name for (name, _), record in records.items() if name in (siblings_of or saes)
    }

    def candidate(sae: str, tasks: Mapping[str, T]) -> Candidate[T]:
        hashes = dict.fromkeys(digest for name in tasks for digest in records[sae, name].siblings)
        others = [loaded(siblings[digest]) for digest in hashes if digest in siblings]
        return Candidate(loaded(sae), site_of(description_of(folder.sae_path(sae))), tasks, others)

    about_tokens = {
        sae: candidate(sae, {name: task() for name, task in tasks.items()})
        for sae in saes
        if (tasks := token_tasks(measurable(records, sae)))
    }
    yield from _on_tokens(lm, config, stream, n_contexts, about_tokens, records, progress)
    about_texts = {
        sae: candidate(sae, {name: task(texts[name]) for name, task in with_text.items()})
        for sae in on_texts
        if (with_text := text_tasks(name for name in measurable(records, sae) if name in texts))
    }
    yield from _on_texts(lm, texts, about_texts, records, progress)


def measurable(records: Records, sae: str) -> list[str]:
    """The tasks that have a record of an SAE which measuring gives again: neither people's, nor of nothing."""
    return [
        task
        for (of, task), record in records.items()
        if of == sae
        and not record.failure
        and record.measured_on != BY_RATERS
        and record.not_measured != NOT_APPLICABLE
    ]


def _on_tokens(
    lm: ActivationModel,
    config: RunConfig,
    stream: ContextStream,
    n_contexts: int | None,
    candidates: Mapping[str, Candidate[Task]],
    records: Records,
    progress: Progress,
) -> Iterator[Finding]:
    """What the held-out tokens say of some SAEs' records."""
    if not candidates:
        return
    sites = list(dict.fromkeys(candidate.site for candidate in candidates.values()))
    means = site_means(lm, stream, sites, contexts_at_once(lm, config.context_size), progress)  # of the whole set
    n_tokens = config.n_held_out if n_contexts is None else n_contexts * (config.context_size - 1)
    sample = token_stream(lm, config, "eval", min(config.n_held_out, n_tokens))
    sample.read()
    evaluate(lm, sample, list(candidates.values()), progress, means)
    # The last document may have been cut, and others have texts beyond the sample that repeat theirs.
    complete = [number for number, size in sorted(sample.sizes.items()) if size == stream.sizes[number]]
    whole = sample.n_delivered == stream.n_delivered
    for sae, candidate in candidates.items():
        for task in candidate.tasks:
            problem = _failure(candidate, task) or difference_on_tokens(
                candidate.results[task], records[sae, task], complete, whole=whole
            )
            yield (f"{task} of {sae}, {sample.n_documents} documents", problem)


def _on_texts(
    lm: ActivationModel,
    texts: Mapping[str, OwnText],
    candidates: Mapping[str, Candidate[TextTask]],
    records: Records,
    progress: Progress,
) -> Iterator[Finding]:
    """What the texts that tasks bring say of some SAEs' records."""
    found: dict[str, OwnText] = {}
    for name, text in texts.items():
        of_task = [records[sae, name] for sae, candidate in candidates.items() if name in candidate.tasks]
        problem = inapplicable(text_tasks([name])[name], lm)
        if problem is None and any(dict(record.comparable) != dict(text.identity) for record in of_task):
            problem = f"is not what the records were measured on ({', '.join(text.identity)})"
        yield (f"text of {name}", problem)
        if problem is None:
            found[name] = text
    if not found:
        return
    measure_texts(language_model(lm), found, list(candidates.values()), progress)
    for sae, candidate in candidates.items():
        for task in candidate.tasks:
            if task in found:
                problem = _failure(candidate, task) or difference_on_texts(
                    candidate.results[task], records[sae, task], chosen_units=candidate.tasks[task].chosen_units
                )
                yield (f"{task} of {sae}", problem)


def _failure(candidate: Candidate[T], task: str) -> str | None:
    """Why a task has no result now."""
    return f"cannot be evaluated now: {candidate.failures[task]}" if task in candidate.failures else None
