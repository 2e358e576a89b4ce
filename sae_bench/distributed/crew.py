"""Those who work on a run on a cluster of Ray's: a cell is a task, retried where that may help, else on record."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sae_bench.distributed import remote
from sae_bench.distributed.captures import CaptureMode, CapturePlan, rounds, trainers_of
from sae_bench.distributed.cluster import Lock, joined, slots_of, versions
from sae_bench.distributed.courier import Inbox
from sae_bench.distributed.desk import Desk
from sae_bench.distributed.logs import KeptProgress, logged
from sae_bench.distributed.planner import Cell
from sae_bench.distributed.returned import Faults, Task, error_of, not_lost, reason_of, value_of
from sae_bench.distributed.shared_capture import CaptureLostError
from sae_bench.distributed.siblings import compared_together
from sae_bench.distributed.view import CellView, View
from sae_bench.errors import UserError
from sae_bench.evaluation.task import read_texts
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Provenance
from sae_bench.runs.cell import begun_cells
from sae_bench.runs.config import RunConfig
from sae_bench.runs.left import Left, left_to_do
from sae_bench.runs.overlap import check_text, outdated
from sae_bench.runs.records import now
from sae_bench.runs.train import Order
from sae_bench.runs.workbench import PlannedSAE, RunOutline
from sae_bench.saes.kernels import Crossovers

FAULTS = 3
"""Times that a cell may fail by itself from one checkpoint; a node's loss is not its fault."""

STOP_S = 120
"""Seconds that cells have to write their checkpoints in when the run is stopped."""

NAME_LENGTH = 500
"""Of a task, at most: a cell may have hundreds of SAEs."""

POLL_S = 0.5


class ClusterCrew:
    """The workers of a cluster; the driver alone writes what concerns the whole run, and keeps its `progress`."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        progress: Progress,
        log_to: str | None,
        capture: CaptureMode,
        address: str,
    ) -> None:
        self._config, self._folder, self.progress = config, folder, progress
        if config.activations_cache is not None:
            if capture == "shared":
                raise UserError(
                    "--capture shared: with --activations-cache every cell reads what is kept, and captures what is "
                    "not; leave out one of the two"
                )
            capture = "own"
        lock = Lock.of(folder.path)
        self._slots = slots_of(config.device, lock)
        self._errand = remote.Errand(
            uuid4().hex,
            config,
            lock,
            str(Path.cwd()),
            {name: Path(name).read_bytes() for name in config.plugins},
            self._slots.n_cpus,
            versions(),
            os.environ.get("SAE_BENCH_CACHE"),
            log_to,
        )
        self._desk: Any = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=_here()).remote()
        self._inbox = Inbox(folder, self._desk)
        self._mode = capture
        self._captures: dict[str, Any] = {}  # those that serve the cells under way, by the cells' names
        self._begun: list[Task] = []
        where = "every node sees the run's folder" if self._slots.shared else "files come through Ray's object store"
        progress.say(
            f"cluster at {address}: {len(self._slots.nodes)} nodes; {self._slots.n} cells at once, GPUs of each: "
            f"{self._slots.n_gpus}, cores: {self._slots.n_cpus}; {where}"
        )

    def outline(self, kernels: Mapping[str, Crossovers]) -> RunOutline:
        found: tuple[RunOutline, Provenance] = value_of(self._begin(remote.outline, "outline", kernels))
        self._outline, self._provenance = found
        return self._outline

    def provenance(self) -> Provenance:
        return self._provenance.model_copy(update={"time": now()})

    def work(self, order: Order, saes: Sequence[PlannedSAE], begun: Callable[[], None]) -> Mapping[str, str]:
        model = self._outline.model_fingerprint
        texts = read_texts(order.tasks, self._config)
        left = left_to_do(self._folder, order.config, order.tasks, saes, model, texts)
        todo = [sae for sae in saes if left[sae.id] is not Left.NOTHING]
        self._check_growth(order, saes)
        begun()
        if not todo:
            return {}
        cells = {cell.id: cell for cell in self._cells(todo)}
        known = {
            name: of for name, of in self._folder.cells().items() if (self._folder.checkpoints_path / name).is_dir()
        }
        self._folder.write_cells({**known, **{name: cell.saes for name, cell in cells.items()}})
        shown = {
            name: CellView(cell.seconds, len(cell.saes), cell.evaluation_seconds / cell.seconds)
            for name, cell in cells.items()
        }
        reference = ray.put(order)
        with View(self.progress, shown, self._config.batch_size) as view, not_lost():
            failures = self._in_rounds(order, todo, cells, reference, view)
        return {sae: reason for name, reason in failures.items() for sae in cells[name].saes}

    def _check_growth(self, order: Order, saes: Sequence[PlannedSAE]) -> None:
        """See that there is text for an evaluation that grows, and that it is the run's, before run.json says so.

        Raises:
            UserError: it cannot grow.
        """
        manifest, config = self._folder.manifest(), self._config
        if not order.tasks or manifest is None or manifest["config_hash"] == config.evaluation_hash:
            return
        own = [sae.id for sae in saes if sae.description.origin is None]
        trained = [name for name in own if self._folder.has_sae(name, config.training_hash)]
        old = outdated(self._folder, trained, config.evaluation_hash)
        overlaps = any(training.eval_overlap is not None for training in old.values())
        fingerprint = value_of(self._begin(remote.grown_text, "text", order, overlaps))
        if overlaps:
            check_text(old, fingerprint, config.dataset)

    def compare_seeds(self, order: Order, saes: Sequence[PlannedSAE]) -> None:
        model = self._outline.model_fingerprint
        waiting, running = compared_together(self._folder, order, saes, model, self._slots.n), list[Task]()
        while waiting or running:
            room = self._slots.n - len(running)
            running += [self._compare(order, names) for names in waiting[:room]]
            del waiting[:room]
            ended, running = ray.wait(running, timeout=POLL_S)
            self._inbox.take()
            for task in ended:
                value_of(task)

    def _compare(self, order: Order, saes: Sequence[str]) -> Task:
        return self._begin(remote.compare, "compare seeds", order, saes, not self._slots.shared, self._desk)

    def _cells(self, todo: Sequence[PlannedSAE]) -> list[Cell]:
        """The cells that were begun, as they were, and new ones for all other SAEs."""
        begun = begun_cells(self._folder, [sae.id for sae in todo], self._config.training_hash)
        kept = [Cell(name, tuple(saes), float(len(saes)), 0, 0.0) for name, saes in begun.items()]
        others = [sae for sae in todo if not any(sae.id in cell.saes for cell in kept)]
        if not others:
            return kept
        names, n, n_bytes = [sae.id for sae in others], self._slots.n, self._slots.n_bytes
        trained = [name for name in names if self._folder.has_sae(name, self._config.training_hash)]
        return [*kept, *value_of(self._begin(remote.plan, "plan", names, trained, n, n_bytes))]

    def _in_rounds(
        self, order: Order, todo: Sequence[PlannedSAE], cells: Mapping[str, Cell], reference: Task, view: View
    ) -> dict[str, str]:
        """Have every cell worked on, all at once or, where they share captures, as many as these serve."""
        own = [sae for sae in todo if sae.description.origin is None]
        to_train = {sae.id: sae for sae in own if not self._folder.has_sae(sae.id, self._config.training_hash)}
        n_trainers = self._n_trainers([sae.id for sae in own], to_train)
        if not n_trainers:
            return self._all_done(cells, reference, view)
        view.say(f"shared capture: each serves up to {n_trainers} cells")
        plan = CapturePlan(self._errand, order, self._slots.options, to_train)
        failures: dict[str, str] = {}
        for groups in rounds(list(cells.values()), n_trainers, self._slots.n):
            with plan.captures(groups) as self._captures:
                failures |= self._all_done({cell.id: cell for group in groups for cell in group}, reference, view)
        return failures

    def _n_trainers(self, saes: Sequence[str], to_train: Collection[str]) -> int:
        """How many cells a capture serves; 0: none is shared."""
        paying = 0
        if to_train and self._mode != "own" and self._slots.n > 1:
            trained = [name for name in saes if name not in to_train]
            paying = value_of(self._begin(remote.paying, "plan", saes, trained, self._slots.n, self._slots.n_bytes))
        return trainers_of(self._mode, paying, self._slots.n) if to_train else 0

    def _all_done(self, cells: Mapping[str, Cell], order: Task, view: View) -> dict[str, str]:
        """Have every cell worked on; return why some were not, by name."""
        pending = {self._submit(cell, order): name for name, cell in cells.items()}
        faults = {name: Faults() for name in cells}
        failures: dict[str, str] = {}
        try:
            while pending:
                ended, _ = ray.wait(list(pending), num_returns=len(pending), timeout=POLL_S)
                reports = self._inbox.take()
                for task in ended:
                    name = pending.pop(task)
                    error = error_of(task)
                    if isinstance(getattr(error, "cause", None), CaptureLostError):
                        del self._captures[name]  # it captures for itself from now on
                    elif error is not None and not isinstance(error, ray.exceptions.NodeDiedError):
                        faults[name].note(reports.get(name))
                    if error is None or isinstance(error, UserError) or faults[name].n == FAULTS:
                        view.finished(name, failed=error is not None)
                        if error is not None:
                            failures[name] = reason_of(error)
                            view.say(f"{name} failed: {failures[name]}")
                    else:
                        view.say(f"{name} begins again: {reason_of(error)}")
                        pending[self._submit(cells[name], order)] = name
                view.show(reports, [name for name in pending.values() if name in reports])
        except KeyboardInterrupt:
            view.say("stopping: the cells write their checkpoints")
            self._stop(list(pending))
            raise
        return failures

    def _stop(self, tasks: list[Task]) -> None:
        """Tell the cells to stop, and wait until they have."""
        for task in tasks:
            ray.cancel(task, recursive=False)  # what they still have to hand in is theirs
        for _ in range(round(STOP_S / POLL_S)):
            _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=POLL_S) if tasks else ([], [])
            self._inbox.take()
            if not tasks:
                return

    def _submit(self, cell: Cell, order: Task) -> Task:
        """Have a cell worked on. Whether that may be tried again is said where its faults are counted."""
        what = (order, cell.id, cell.saes, not self._slots.shared, self._desk, self._captures.get(cell.id))
        return self._begin(remote.cell, ", ".join(cell.saes)[:NAME_LENGTH], *what, max_retries=0)

    def _begin(self, work: Callable[..., Any], name: str, *arguments: object, max_retries: int = FAULTS) -> Task:
        """Have a device's worth of work done on a node; `name` is what it is called there and on the dashboard."""
        options = {**self._slots.options, "max_retries": max_retries}
        task = ray.remote(work).options(name=name, **options).remote(self._errand, *arguments)
        self._begun = [*self._under_way(), task]  # of one that has ended, Ray would keep what it was given
        return task

    def _under_way(self) -> list[Task]:
        """What was begun and has not ended."""
        return ray.wait(self._begun, num_returns=len(self._begun), timeout=0)[1] if self._begun else []

    def end(self) -> None:
        """See that nobody works on the run any more, whatever it ended by: the connection may be kept."""
        self._inbox.close()
        with suppress(ray.exceptions.RayError):  # of a cluster that is lost, where nobody works
            self._begun = self._under_way()
            for task in self._begun:
                ray.cancel(task, force=True)
            if self._begun:
                ray.wait(self._begun, num_returns=len(self._begun), timeout=STOP_S)


@contextmanager
def cluster_crew(
    on: str,
    config: RunConfig,
    folder: RunFolder,
    progress: Progress,
    log_to: str | None,
    capture: CaptureMode = "auto",
) -> Iterator[ClusterCrew]:
    """The workers of the cluster that `--on` names.

    Raises:
        UserError: it cannot be joined, or cannot work on this run.
    """
    with logged(folder.path / "logs" / "driver.log") as keep, joined(on) as address:
        crew = ClusterCrew(config, folder, KeptProgress(progress, keep), log_to, capture, address)
        try:
            yield crew
        finally:
            crew.end()


def _here() -> NodeAffinitySchedulingStrategy:
    """The driver's node and no other, for with another the desk could be lost alone."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
