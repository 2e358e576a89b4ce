"""Evaluation on text that tasks bring: the records that are missing of a run's SAEs, made in one pass."""

from collections.abc import Mapping, Sequence

import torch

from sae_bench.evaluation.loop import Candidate
from sae_bench.evaluation.task import OwnText, TextTask, read_texts, text_tasks
from sae_bench.evaluation.text_loop import measure_texts
from sae_bench.lm.fingerprint import fingerprint
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import ON_TEXTS, Provenance, Record, SAEDescription, write_record
from sae_bench.runs.import_saes import Plan
from sae_bench.runs.records import inapplicable, inapplicable_record, is_missing, make_record
from sae_bench.runs.sources import language_model
from sae_bench.runs.workbench import Workbench
from sae_bench.saes.save import description_of, load_sae


def without_record(
    folder: RunFolder, sae: SAEDescription, config_hash: str, model_fingerprint: str, texts: Mapping[str, OwnText]
) -> list[str]:
    """The tasks among those that bring these texts of which an SAE has no record, or one of other text."""
    return [
        name
        for name, text in texts.items()
        if is_missing(folder.record(sae.id, name), name, sae, config_hash, model_fingerprint, (), text.identity)
    ]


def evaluate_on_texts(
    bench: Workbench, plans: Sequence[Plan], names: Sequence[str], folder: RunFolder, progress: Progress
) -> None:
    """Write the missing records of those tasks of these names that bring text."""
    lm, config = bench.lm, bench.config
    texts, tasks = read_texts(names, config), text_tasks(names)
    found: list[tuple[Candidate[TextTask], SAEDescription]] = []
    for plan in plans:
        description = description_of(folder.sae_path(plan.id))
        missing = (
            without_record(folder, description, config.evaluation_hash, fingerprint(lm.identity()), texts)
            if texts
            else []
        )
        if not missing:
            continue
        if description.training.failure:
            with torch.device("meta"):  # nobody will ask for its weights
                sae = plan.build()
        else:
            sae = load_sae(folder.sae_path(plan.id), lm.device)
        found.append((Candidate(sae, plan.site, {name: tasks[name](texts[name]) for name in missing}), description))
    if not found:
        return
    reasons = {name: reason for name in texts if (reason := inapplicable(tasks[name], lm))}
    if not reasons:  # what has no language model has none for all of them
        healthy = [candidate for candidate, of in found if not of.training.failure]
        measure_texts(language_model(bench.lm), texts, healthy, progress)
    provenance = bench.provenance()
    for candidate, description in found:
        for name, task in candidate.tasks.items():
            if name in reasons:
                record = inapplicable_record(task, reasons[name], description, provenance)
            else:
                result, failure = candidate.results.get(name), candidate.failures.get(name)
                record = make_record(task, result, failure, description, provenance)
            write_record(folder.record_path(description.id, name), on_text(record, texts[name]))


def write_text_failures(
    folder: RunFolder,
    names: Sequence[str],
    texts: Mapping[str, OwnText],
    sae: SAEDescription,
    failure: str,
    provenance: Provenance,
) -> None:
    """Records that say why there are no numbers of an SAE, for each of some tasks."""
    for name in names:
        record = make_record(text_tasks([name])[name], None, failure, sae, provenance)
        write_record(folder.record_path(sae.id, name), on_text(record, texts[name]))


def on_text(record: Record, text: OwnText) -> Record:
    """The record with what it was measured on: other text than the evaluation's."""
    return record.model_copy(update={"comparable": dict(text.identity), "measured_on": ON_TEXTS})
