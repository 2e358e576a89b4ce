"""`verify`: can the numbers of a finished run be traced to the bytes that made them?

Everything that has a checksum is hashed again, the language model included; then every SAE is evaluated again on the
first held-out contexts, and the first of each architecture on the texts that tasks bring, and what comes out is held
against the records.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError, one_line
from sae_bench.leaderboard.bootstrap import Design
from sae_bench.leaderboard.replicates import metric_replicates
from sae_bench.leaderboard.tables import board_files
from sae_bench.progress import Progress
from sae_bench.records.files import digest_of, read_sealed
from sae_bench.records.run_folder import SAE_DESCRIPTION, RunFolder, changed_file
from sae_bench.records.schema import RATIO, Record, read_record
from sae_bench.runs.begun import FORMAT
from sae_bench.runs.config import RunConfig
from sae_bench.runs.home import at_home, hashes_of_plugin
from sae_bench.runs.verify_latents import verify_latents
from sae_bench.runs.verify_numbers import Finding, verify_numbers


def verify(folder: RunFolder, progress: Progress, n_contexts: int = 16) -> Iterator[Finding]:
    """Check a run's files, its language model and data, and, on a sample, its numbers.

    Raises:
        UserError: there is no run in the folder.
    """
    manifest = read_sealed(folder.path / "run.json")
    config = RunConfig.of_run(manifest)
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
        first: dict[str, str] = {}
        for sae_id in whole:
            first.setdefault(next(record.sae.label for (of, _), record in records.items() if of == sae_id), sae_id)
        yield from verify_numbers(
            folder, config, records, whole, progress, n_contexts, on_texts=[*first.values()], manifest=manifest
        )


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
        if not RATIO.fullmatch(score.formula):
            return f"{name} is {score.formula}, which is no ratio of sums"
        try:
            value = float(metric_replicates(record, name, Design(1, 1))[0])
        except (KeyError, ValueError, ZeroDivisionError) as error:  # not of this program
            return f"{name} is {score.formula}, of sums that it does not have ({one_line(str(error))})"
        if not math.isclose(value, score.value, rel_tol=1e-9, abs_tol=1e-12):
            return f"{name} is {score.value:.6g}, its sums give {value:.6g}"
    return None


def _board_problem(folder: RunFolder, records: list[Record]) -> str | None:
    for name, content in board_files(records).items():
        path = folder.path / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            return f"{name} is not what the records give"
    return None
