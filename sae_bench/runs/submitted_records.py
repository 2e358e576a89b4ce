"""What a reviewer looks at in a stranger's records: each by itself, and whether all are of the one run that they name.

A record says of itself what it is measured on and whether there was anything to measure, and by that it is measured
again or not. So neither is believed: the task decides both.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from sae_bench._version import __version__
from sae_bench.errors import UserError, one_line
from sae_bench.evaluation.task import BaseTask, LatentTask, Task, TextTask
from sae_bench.leaderboard.load import check_comparable
from sae_bench.lm.corpus import describe
from sae_bench.lm.load import random_name
from sae_bench.lm.model_names import HUB_MODELS
from sae_bench.records.files import digest_of, read_sealed
from sae_bench.records.names import file_name
from sae_bench.records.schema import (
    BY_RATERS,
    NOT_APPLICABLE,
    ON_LATENTS,
    ON_TEXTS,
    ON_TOKENS,
    Metric,
    Record,
    record_from,
)
from sae_bench.registry import CORPORA, TASKS
from sae_bench.runs.completeness import RERUN
from sae_bench.runs.config import RunConfig
from sae_bench.runs.records import applies
from sae_bench.runs.verify import score_problem

ALIKE = (
    *("model", "model_revision", "model_sha256", "model_fingerprint", "tokenizer_sha256", "lm_dtype", "sae_dtype"),
    *("dataset", "eval_fingerprint", "eval_tokens", "eval_documents", "preset", "config", "config_hash"),
)
"""What records of one run share."""

MEASURED_ON: Mapping[type, str] = {Task: ON_TOKENS, TextTask: ON_TEXTS, LatentTask: ON_LATENTS}
"""By the kind of its task."""


def submitted_records(folder: Path) -> dict[tuple[str, str], Record]:
    """The records of a board, by SAE and task, each looked at by itself.

    Raises:
        UserError: one is not in order; the message names the file.
    """
    records: dict[tuple[str, str], Record] = {}
    for path in sorted((folder / "records").glob("*.json")):
        record = _record(path)
        if path.name != f"{record.sae.id}.{record.task}.json":
            raise UserError(f"{path} is a record of {one_line(record.sae.id)}.{one_line(record.task)}: rename it so")
        records[record.sae.id, record.task] = record
    return records


def _record(path: Path) -> Record:
    content = read_sealed(path)
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        raise UserError(f"{path} holds a number that is not finite: {RERUN}") from None
    record = record_from(content, path)
    about = record.sae
    texts = [about.id, about.arch, about.label, about.site.name, record.task, *record.metrics, *record.scores]
    for text in [*texts, record.provenance.model, record.provenance.dataset]:
        if one_line(text) != text:
            raise UserError(f"{path} has a name with characters that hide or turn text, {one_line(text)!r}: rename it")
    for name in (about.id, record.task):
        if name != file_name(name):
            raise UserError(f"{path}: {one_line(name)!r} is no name of an SAE or a task: {RERUN}")
    if (problem := score_problem(record)) is not None:
        raise UserError(f"{path}: {problem}: {RERUN}")
    return record


def check_records(
    manifest: Path, records: Mapping[tuple[str, str], Record], config_hash: str, config: RunConfig
) -> None:
    """See that all records are of the run that run.json is of, and of tasks as they are measured today.

    Raises:
        UserError: one is not; the message names the file.
    """
    first = next(iter(records.values())).provenance
    saes: dict[str, dict[str, Any]] = {}
    for (sae, task), record in records.items():
        path = manifest.parent / "records" / f"{sae}.{task}.json"
        about = record.sae.model_dump(exclude={"training"})  # of which more may be known later
        if saes.setdefault(sae, about) != about:
            raise UserError(f"{path} says of its SAE what its other records do not: {RERUN}")
        for what in ALIKE:
            if (was := getattr(record.provenance, what)) != (wanted := getattr(first, what)):
                own, others = (f"{one_line(str(of)):.80}" for of in (was, wanted))
                raise UserError(f"{path}: its {what} is {own}, others' is {others}: {RERUN}")
        _check_version(path, record.provenance.versions.get("sae-arch-bench", ""))
        _check_kind(path, record, in_world=config.world is not None)
    if config_hash != first.config_hash or config_hash != digest_of(first.config):
        raise UserError(f"{manifest} is not of the run that the records are of: {RERUN}")
    for named, said in _names(config, first.dataset).items():
        if (own := getattr(first, named)) != said:
            raise UserError(f"{manifest} names {one_line(said)}, the records {one_line(own)}: {RERUN}")
    check_comparable(list(records.values()))


def _check_version(path: Path, version: str) -> None:
    """See that a record is of a version up to this one, in whose terms records are read."""
    if not (found := re.match(r"(\d+)\.(\d+)\.(\d+)", version)):
        raise UserError(f"{path} does not say the version of sae-arch-bench that made it: {RERUN}")
    this = re.match(r"(\d+)\.(\d+)\.(\d+)", __version__)
    if this and tuple(map(int, found.groups())) > tuple(map(int, this.groups())):
        raise UserError(f"{path} was made by sae-arch-bench {one_line(version)}, this is {__version__}: update it")


def _check_kind(path: Path, record: Record, *, in_world: bool) -> None:
    """See that a record is what one of its task is: of raters, or of a built-in task, on what that measures."""
    task = record.task
    if task in TASKS:
        cls = TASKS[task]
        if (version := str(cls.version)) != record.task_version:
            raise UserError(
                f"{path} was measured by {task} {one_line(record.task_version)}, this version has {version}: "
                "run the same command with this version, and submit that"
            )
        wanted = next(on for kind, on in MEASURED_ON.items() if issubclass(cls, kind))
        if record.measured_on != wanted:
            on = one_line(record.measured_on)
            raise UserError(f"{path} says that it is measured on {on}, and {task} is measured on {wanted}: {RERUN}")
        said, known = ({of.name: of.better for of in metrics} for metrics in (record.metrics.values(), _metrics(cls)))
        if strange := [name for name, better in said.items() if known and known.get(name, "") != better]:
            raise UserError(f"{path} has {one_line(strange[0])}, which {task} does not measure so: {RERUN}")
    elif record.measured_on != BY_RATERS:
        raise UserError(f"{path} is of the task {task}, which is not built in: submit its source first")
    if record.not_measured == NOT_APPLICABLE and (task not in TASKS or applies(TASKS[task], in_world=in_world)):
        raise UserError(f"{path} says that {task} does not apply to this run, and it does: {RERUN}")
    nothing = record.failure is not None or record.not_measured == NOT_APPLICABLE
    if nothing and any(score.value is not None for score in record.scores.values()):
        raise UserError(f"{path} has scores, and says that nothing was measured: {RERUN}")
    of_others = {metric.name: name for name in TASKS if name != task for metric in _metrics(TASKS[name])}
    if taken := [name for name in record.metrics if name in of_others]:
        raise UserError(f"{path} has the metric {taken[0]}, which is that of {of_others[taken[0]]}: {RERUN}")


def _metrics(cls: type[BaseTask]) -> Sequence[Metric]:
    """Those of a task; none of one about latents, whose metrics are those of the run's scorers."""
    return () if issubclass(cls, LatentTask) else cls.metrics


def _names(config: RunConfig, dataset: str) -> dict[str, str]:
    """What records of a run call its model, preset and text; the text as they have it where versions alone differ."""
    model = HUB_MODELS.get(config.model, config.model)
    if config.random_lm:
        model = random_name(model, config.seeds[0])
    return {"model": model, "preset": config.preset, "dataset": _text(config, dataset)}


def _text(config: RunConfig, said: str) -> str:
    if config.world is not None:
        return config.model
    if config.dataset not in CORPORA:
        return config.dataset
    try:
        name = describe(config.dataset)
    except (UserError, PackageNotFoundError):  # what it is made of is not on this machine
        return said
    unversioned = [re.sub(r"\d[\w.+]*", "", of) for of in (name, said)]
    return said if unversioned[0] == unversioned[1] else name
