"""Records of some runs, and whether their numbers may share a table."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from sae_bench.errors import UserError, did_you_mean
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import NOT_APPLICABLE, Metric, Record


def gather(folders: Sequence[Path], *, mix: bool = False) -> list[Record]:
    """Records of some runs.

    Raises:
        UserError: a folder holds no records, or, without `mix`, the runs measured on different tokens, with different
            versions of a task or language models, so that their numbers must not share a table.
    """
    records: list[Record] = []
    for folder in folders:
        found = RunFolder(folder).records()
        if not found:
            raise UserError(f"{folder} holds no records: give the folder of a finished run")
        records += found
    if not mix:
        check_comparable(records)
    return records


def metrics_of(records: Iterable[Record], wanted: Iterable[str] = ()) -> dict[str, Metric]:
    """All metrics of some records, by name, but for those that apply to none of them.

    Raises:
        UserError: one of those that are wanted is not among them.
    """
    known: dict[str, Metric] = {}
    # Thousands of records share what they say of their metrics.
    said = {id(record.metrics): record.metrics for record in records if record.not_measured != NOT_APPLICABLE}
    for metrics in said.values():
        known.update(metrics)
    for name in wanted:
        if name not in known:
            raise UserError(f'unknown metric "{name}"{did_you_mean(name, known)}')
    return known


def with_value_or_failure(records: Iterable[Record]) -> set[str]:
    """The metrics of which some SAE has a value, or has none because its task failed."""
    return {
        name
        for record in records
        for name in record.metrics
        if (record.failure and not record.not_measured)
        or ((score := record.scores.get(name)) is not None and score.value is not None)
    }


def check_comparable(records: Sequence[Record]) -> None:
    """Raise UserError unless records of one model and task share evaluation tokens, version of the task, and model."""
    if found := differences(records):
        raise UserError(
            f"the records were made with different {' and '.join(found)}: tabulate these runs separately, or with "
            "--mix, which says so in the table"
        )


def differences(records: Sequence[Record]) -> list[str]:
    """What keeps records of one model and task from being compared: nothing, unless someone mixed them."""
    seen: dict[str, dict[tuple[str, str], set[str]]] = {"evaluation tokens": {}, "versions of a task": {}}
    # Thousands of records say the same, and nearly all of them have one provenance.
    said = {(id(r.provenance), r.task, r.task_version, *r.comparable.items()): r for r in records}
    for record in said.values():
        made, task = record.provenance, record.task
        shared = {"evaluation tokens": made.eval_fingerprint, "versions of a task": record.task_version}
        for what, value in (shared | record.comparable).items():
            seen.setdefault(what, {}).setdefault((made.model, task), set()).add(value)
        if made.model_fingerprint:  # of one dtype, which is in it: tables may mix them
            name = f"{made.model} in {made.lm_dtype}"
            seen.setdefault("language models of one name", {}).setdefault((name, ""), set()).add(made.model_fingerprint)
    return [what for what, found in seen.items() if any(len(values) > 1 for values in found.values())]
