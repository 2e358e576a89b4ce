"""Work on some SAEs of a run that share one stream on one device: train or import them, evaluate them, collect latents.

A run in one process is one such cell. Nothing in it depends on which SAEs a cell has, so that a run in many cells
makes the same files.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from itertools import product

import torch

from sae_bench.errors import UserError
from sae_bench.evaluation.loop import Candidate, evaluate
from sae_bench.evaluation.task import Task, latent_tasks
from sae_bench.lm.fingerprint import fingerprint
from sae_bench.progress import Progress
from sae_bench.records.files import digest_of
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import write_record
from sae_bench.runs.collect import collect_latents
from sae_bench.runs.costs import LMWork
from sae_bench.runs.import_saes import ImportPlan, Plan, import_saes
from sae_bench.runs.left import among_seeds, of_one_sae
from sae_bench.runs.overlap import new_overlaps, write_overlaps
from sae_bench.runs.plan import SAEPlan
from sae_bench.runs.rates import remember_parts, remember_rate
from sae_bench.runs.records import (
    inapplicable,
    inapplicable_record,
    is_missing,
    make_record,
    provenance_of,
    siblings_among,
)
from sae_bench.runs.sources import interpretation_stream
from sae_bench.runs.texts import evaluate_on_texts
from sae_bench.runs.train import Order, TrainStage
from sae_bench.runs.workbench import Workbench
from sae_bench.saes.save import description_of, load_sae
from sae_bench.training.checkpoint import checkpointed
from sae_bench.training.logging import LogSink
from sae_bench.training.source import OpenSource


def work_on(
    bench: Workbench,
    order: Order,
    saes: Collection[str],
    folder: RunFolder,
    progress: Progress,
    sink: LogSink,
    *,
    cell: str = "",
    begun: Callable[[], None] = lambda: None,
    saved: Callable[[], None] = lambda: None,
    open_source: OpenSource | None = None,
) -> None:
    """Do what is missing of some SAEs, given by name; `open_source` as in `TrainStage`.

    `begun` is called where all is found that can be wrong, before the first file is written; `saved` after every
    checkpoint, which are those of `cell`.

    Raises:
        UserError: something asked for cannot be done; what was finished before stays.
        KeyboardInterrupt: a signal said to stop; a checkpoint is written.
    """
    config, lm = order.config, bench.lm
    if order.model_fingerprint not in ("", fingerprint(lm.identity())):
        raise UserError(
            f"{lm.name} is another model here than where the run was planned: give all nodes the same files"
        )
    plans = [plan for plan in bench.plans.values() if plan.id in saes]
    missing = [plan for plan in plans if not folder.has_sae(plan.id, config.training_hash)]
    to_train = [plan for plan in missing if isinstance(plan, SAEPlan)]
    to_import = [plan for plan in missing if isinstance(plan, ImportPlan)]
    for plan in to_import:
        plan.build()  # a number that is not finite shows before the first file is written, too
    with bench.keeping_activations():
        overlaps = _read_text(bench, order, plans, missing, folder)
        stage = TrainStage(lm, order, to_train, folder, progress, cell, saved, open_source) if to_train else None
        begun()
        if stage is not None:
            stage.run(sink)
            del stage  # and its buffer
        import_saes(lm, config, to_import, folder)
        write_overlaps(overlaps, folder, config.evaluation_hash)
        evaluate_saes(bench, plans, of_one_sae(order.tasks), folder, progress)
        evaluate_on_texts(bench, plans, order.tasks, folder, progress)
        collect_latents(bench, order, saes, folder, progress)


def _read_text(
    bench: Workbench, order: Order, plans: Sequence[Plan], missing: Sequence[Plan], folder: RunFolder
) -> Mapping[str, float | None]:
    """See that there is text for all that is to be done, and return `new_overlaps` of the SAEs that are not `missing`.

    Raises:
        UserError: there is not, or it is not the text that they were trained on.
    """
    manifest = folder.manifest()
    if manifest is not None and manifest["config_hash"] != order.config.evaluation_hash:
        read_grown_text(bench, order)
    elif missing:
        bench.read_held_out()
    finished = [plan for plan in plans if plan not in missing]
    return new_overlaps(bench, finished, folder) if order.tasks else {}


def read_grown_text(bench: Workbench, order: Order) -> None:
    """See that there is text for an evaluation that grows: once run.json says so, there is no way back to fewer tokens.

    Raises:
        UserError: there is not enough.
    """
    bench.read_held_out()
    if latent_tasks(order.tasks) and order.config.collects:
        interpretation_stream(bench.lm, order.config).read()


def compare_seeds(bench: Workbench, order: Order, saes: Collection[str], folder: RunFolder, progress: Progress) -> None:
    """Write the missing records of tasks that compare an SAE with those of other seeds, all of them among `saes`."""
    plans = [plan for plan in bench.plans.values() if plan.id in saes]
    with bench.keeping_activations():
        evaluate_saes(bench, plans, among_seeds(order.tasks), folder, progress)


def begun_cells(folder: RunFolder, saes: Collection[str], training_hash: str) -> dict[str, list[str]]:
    """The cells that have checkpoints and are not at their end, by name: only all that shared a stream can go on."""
    return {
        cell: [sae for sae in members if sae in saes]
        for cell, members in folder.cells().items()
        if (folder.checkpoints_path / cell).is_dir()
        and any(sae in saes and not folder.has_sae(sae, training_hash) for sae in members)
    }


def cells_here(folder: RunFolder, saes: Collection[str], training_hash: str) -> dict[str, list[str]]:
    """All SAEs in the cells that one process works on: those begun, that of the whole run, and one for what is added.

    What is added to a run shares no stream with what was trained before: it has checkpoints of its own.
    """
    cells = begun_cells(folder, saes, training_hash)
    rest = [name for name in saes if not any(name in members for members in cells.values())]
    trained = checkpointed(folder.checkpoints_path)
    added = [name for name in rest if trained and name not in trained and not folder.has_sae(name, training_hash)]
    cells[""] = [name for name in rest if name not in added]
    if added:
        known = folder.cells()
        name = f"added-{digest_of(added)[:8]}"
        folder.write_cells({**known, name: added})
        cells[name] = added
    return cells


def write_inapplicable(
    bench: Workbench, plans: Sequence[Plan], tasks: Mapping[str, type[Task]], folder: RunFolder
) -> None:
    """Write the missing records of tasks that do not apply to what gives the run's activations."""
    for plan, (name, task) in product(plans, tasks.items()):
        description = description_of(folder.sae_path(plan.id))
        made, model = folder.record(plan.id, name), fingerprint(bench.lm.identity())
        reason = inapplicable(task, bench.lm)
        if reason and is_missing(made, name, description, bench.config.evaluation_hash, model):
            record = inapplicable_record(task(), reason, description, bench.provenance())
            write_record(folder.record_path(plan.id, name), record)


def evaluate_saes(
    bench: Workbench, plans: Sequence[Plan], tasks: Mapping[str, type[Task]], folder: RunFolder, progress: Progress
) -> None:
    """Write the records that are missing: one pass over the held-out tokens for all of them."""
    candidates = []
    healthy: list[Candidate[Task]] = []
    lm, config, stream = bench.lm, bench.config, bench.held_out
    reasons = {name: reason for name, task in tasks.items() if (reason := inapplicable(task, lm))}
    write_inapplicable(bench, plans, {name: tasks[name] for name in reasons}, folder)
    tasks = {name: task for name, task in tasks.items() if name not in reasons}
    descriptions = {plan.id: description_of(folder.sae_path(plan.id)) for plan in plans}
    among = siblings_among(descriptions.values())
    loaded = cache(lambda name: load_sae(folder.sae_path(name), lm.device))
    for plan in plans:
        description = descriptions[plan.id]
        siblings = among[plan.id]
        compared = {name: siblings if task.needs_siblings else [] for name, task in tasks.items()}
        missing = {
            name: task()
            for name, task in tasks.items()
            if is_missing(
                folder.record(plan.id, name),
                name,
                description,
                config.evaluation_hash,
                fingerprint(lm.identity()),
                compared[name],
            )
        }
        if not missing:
            continue
        if description.training.failure:
            with torch.device("meta"):  # nobody will ask for its weights
                candidate = Candidate(plan.build(), plan.site, missing)
        else:
            others = siblings if any(task.needs_siblings for task in missing.values()) else []
            candidate = Candidate(loaded(plan.id), plan.site, missing, [loaded(other.id) for other in others])
            healthy.append(candidate)
        candidates.append((candidate, description, compared))
    if not candidates:
        return
    start = time.monotonic()
    if healthy:
        evaluate(lm, stream, healthy, progress)
    else:
        stream.read()  # for its counts and its fingerprint
    seconds = time.monotonic() - start
    if healthy and any(task.needs_lm_loss for task in tasks.values()):
        remember_rate("evaluation", lm, config, [about for _, about, _ in candidates], stream.n_delivered, start)
        work = LMWork(lm, config)
        through = stream.n_delivered * work.evaluation([candidate.site for candidate in healthy]) / work.layer
        remember_parts(lm, config, {"evaluation": (through, seconds)})
    provenance = provenance_of(lm, config, stream).model_copy(update={"evaluation_seconds": round(seconds, 3)})
    for candidate, description, compared in candidates:
        for name, task in candidate.tasks.items():
            result, failure = candidate.results.get(name), candidate.failures.get(name)
            record = make_record(task, result, failure, description, provenance, compared[name])
            write_record(folder.record_path(description.id, name), record)
