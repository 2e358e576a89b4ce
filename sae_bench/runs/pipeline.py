"""The main job: see what a run will be, have its cells worked on, have its latents judged, draw the board.

Every stage reads and writes the run's folder, so the same command does only what is missing: finished SAEs are loaded
instead of trained, existing records are kept.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from sae_bench.autointerp.latents import read_latents
from sae_bench.evaluation.task import OwnText, latent_tasks, read_texts, token_tasks
from sae_bench.leaderboard import tables
from sae_bench.leaderboard.load import check_comparable
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Provenance, Record, write_record
from sae_bench.runs.begun import begin, check_disk, check_one_text, check_unchanged, other_environment, write_manifest
from sae_bench.runs.cell import cells_here, compare_seeds, work_on
from sae_bench.runs.checks import check, default_corpus
from sae_bench.runs.collect import as_saved, interpreted, random_saes
from sae_bench.runs.config import RunConfig
from sae_bench.runs.interpret import interpret_saes
from sae_bench.runs.latent_records import InterpretedSAE
from sae_bench.runs.plan import SAEPlan, tasks_of
from sae_bench.runs.records import is_missing, make_record
from sae_bench.runs.texts import without_record, write_text_failures
from sae_bench.runs.times import stage_times
from sae_bench.runs.train import Order
from sae_bench.runs.workbench import PlannedSAE, RunOutline, Workbench
from sae_bench.saes.kernels import Crossovers
from sae_bench.training.logging import LogSink, log_sink


@runtime_checkable
class Crew(Protocol):
    """Who works on a run, and where: this process, or a cluster's."""

    def outline(self, kernels: Mapping[str, Crossovers]) -> RunOutline:
        """What the run will be; `kernels` as in `Workbench.outline`."""

    def work(self, order: Order, saes: Sequence[PlannedSAE], begun: Callable[[], None]) -> Mapping[str, str]:
        """Do what is missing of these SAEs, and return why nothing came of some, by name; `begun` as in `work_on`."""

    def compare_seeds(self, order: Order, saes: Sequence[PlannedSAE]) -> None:
        """Once they are there, write the missing records of tasks that compare an SAE with those of other seeds."""

    def provenance(self) -> Provenance:
        """What every record repeats."""


class LocalCrew:
    """This process works on the run, as one cell."""

    def __init__(self, config: RunConfig, folder: RunFolder, progress: Progress, sink: LogSink) -> None:
        self._folder, self._progress, self._sink = folder, progress, sink
        self._bench = Workbench(config, progress)

    def outline(self, kernels: Mapping[str, Crossovers]) -> RunOutline:
        return self._bench.outline(kernels)

    def work(self, order: Order, saes: Sequence[PlannedSAE], begun: Callable[[], None]) -> Mapping[str, str]:
        names = [sae.id for sae in saes]
        cells = cells_here(self._folder, names, order.config.training_hash)
        self._expect(order, names)
        for cell, members in cells.items():
            work_on(self._bench, order, members, self._folder, self._progress, self._sink, cell=cell, begun=begun)
        return {}

    def _expect(self, order: Order, names: Sequence[str]) -> None:
        """Say how long the work takes, for the time that is left of it."""
        if self._progress.quiet:
            return
        plans = [self._bench.plans[name] for name in names]
        new = [
            p for p in plans if isinstance(p, SAEPlan) and not self._folder.has_sae(p.id, order.config.training_hash)
        ]
        times = stage_times(self._bench.lm, order.config, {"training": new, "evaluation": plans})
        stages = {"training": "train", "evaluation": "evaluate"}
        self._progress.expect({stages[name]: of.seconds for name, of in times.items()})

    def compare_seeds(self, order: Order, saes: Sequence[PlannedSAE]) -> None:
        compare_seeds(self._bench, order, [sae.id for sae in saes], self._folder, self._progress)

    def provenance(self) -> Provenance:
        return self._bench.provenance()


def run(
    config: RunConfig,
    folder: RunFolder,
    progress: Progress,
    log_to: str | None = None,
    crew: Crew | None = None,
    *,
    train_only: bool = False,
) -> Sequence[Record]:
    """Do the main job and return the run's records; `log_to` is where the training log is shown, too.

    `crew` are those who work on it; without one this process does. With `train_only` nothing is evaluated.

    Raises:
        UserError: something asked for cannot be done; what was finished before stays.
    """
    with log_sink(log_to, folder.path) as sink:
        tasks = () if train_only else tasks_of(config)
        check(config, tasks)
        texts = read_texts(tasks, config)
        earlier, kernels = begin(folder, config)
        crew = crew or LocalCrew(config, folder, progress, sink)
        outline = crew.outline(kernels)
        for line in default_corpus(config):
            progress.say(line)
        check_unchanged(folder, config, outline, earlier)
        check_disk(folder, outline, config)
        without = outline.inapplicable
        collected = [name for name in tasks if name not in without or name not in latent_tasks(tasks)]
        other = other_environment(folder, outline)
        order = Order(config, tuple(collected), tuple(earlier), outline.kernels, other, outline.model_fingerprint)

        def begun() -> None:
            write_manifest(folder, order, outline, train_only=train_only)

        failures = crew.work(order, outline.saes, begun)
        begun()  # nothing was missing but the manifest
        saes = [_outcome(folder, sae, failures, config.training_hash) for sae in outline.saes]
        check_one_text(folder, saes, config.dataset)
        for sae in saes:
            if sae.id in failures:
                write_failures(
                    folder, order, sae, failures[sae.id], crew.provenance(), outline.model_fingerprint, texts
                )
        crew.compare_seeds(order, [sae for sae in saes if folder.has_sae(sae.id, config.training_hash)])
        random = random_saes(config, outline.saes)
        failures = {**failures, **{sae.id: failures[owner] for owner, sae in random.items() if owner in failures}}
        subjects = interpreted(config, [*saes, *random.values()], outline.model_fingerprint)
        if config.collects:
            subjects = [_collected(folder, subject, failures.get(subject.id)) for subject in subjects]
        interpret_saes(config, subjects, latent_tasks(tasks), folder, crew.provenance, progress, without)
        records = folder.records()
        check_comparable(records)
        if records:
            tables.write_board(folder.path, records)
        return records


def _outcome(folder: RunFolder, sae: PlannedSAE, failures: Mapping[str, str], training_hash: str) -> PlannedSAE:
    """An SAE as its cell left it: with what its files say, or why there are none."""
    if folder.has_sae(sae.id, training_hash):
        return as_saved(folder, sae)
    return sae.failed(failures[sae.id]) if sae.id in failures else sae


def _collected(folder: RunFolder, sae: InterpretedSAE, failure: str | None) -> InterpretedSAE:
    """An SAE whose latents are there, or that says by which `failure` of its cell they are not."""
    if failure is None or read_latents(folder, sae.id, sae.collected_by) is not None:
        return sae
    return dataclasses.replace(sae, not_collected=failure)


def write_failures(
    folder: RunFolder,
    order: Order,
    sae: PlannedSAE,
    failure: str,
    provenance: Provenance,
    model_fingerprint: str,
    texts: Mapping[str, OwnText],
) -> None:
    """Records that say why there are no numbers of an SAE whose cell failed; the same command tries it again.

    `texts` are those that the order's tasks bring.
    """
    for name, task in token_tasks(order.tasks).items():
        made = folder.record(sae.id, name)
        if is_missing(made, name, sae.description, order.config.evaluation_hash, model_fingerprint):
            record = make_record(task(), None, failure, sae.description, provenance)
            write_record(folder.record_path(sae.id, name), record)
    without = without_record(folder, sae.description, order.config.evaluation_hash, model_fingerprint, texts)
    write_text_failures(folder, without, texts, sae.description, failure, provenance)
