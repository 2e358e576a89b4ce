"""What runs on a cluster's nodes: an outline of the run, and the work on a cell. Each is one Ray task."""

import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from sae_bench.device import SPARE_SHARE, has_cuda
from sae_bench.distributed.cluster import Lock, check_versions, versions
from sae_bench.distributed.courier import Courier
from sae_bench.distributed.desk import Report
from sae_bench.distributed.fleet import CPU
from sae_bench.distributed.logs import logged
from sae_bench.distributed.planner import Cell
from sae_bench.distributed.shared_capture import SharedSource
from sae_bench.distributed.sweep import paying_trainers, plan_sweep
from sae_bench.distributed.work import Devices
from sae_bench.lm.sites import Site
from sae_bench.progress import Progress
from sae_bench.records.files import digest_of, inside, write_bytes
from sae_bench.records.redact import install_redaction
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Provenance
from sae_bench.registry import load_plugin
from sae_bench.runs.cell import compare_seeds, read_grown_text, work_on
from sae_bench.runs.config import RunConfig
from sae_bench.runs.costs import CARDS
from sae_bench.runs.overlap import read_training_text
from sae_bench.runs.plan import SAEPlan
from sae_bench.runs.sources import own_capture
from sae_bench.runs.train import Order
from sae_bench.runs.workbench import RunOutline, Workbench
from sae_bench.saes.kernels import Crossovers
from sae_bench.signals import stop_signals
from sae_bench.training.buffer import ActivationBuffer
from sae_bench.training.logging import log_sink
from sae_bench.training.serving import Scaling, Serving

T = TypeVar("T")

OWN_CACHE = os.environ.get("SAE_BENCH_CACHE")
"""The node's, where the driver has none."""

REPORT_S = 0.5
"""Seconds between two reports of a cell."""


@dataclass(frozen=True)
class Errand:
    """What every task of a run must know of the driver."""

    run: str
    """This run's alone: with the next one, files that have the same names may be others."""
    config: RunConfig
    lock: Lock
    """In the run's folder, where a node sees it."""
    here: str
    """The driver's working directory, which the paths of plugins, corpora and models may begin at."""
    plugins: Mapping[str, bytes]
    threads: int
    versions: Mapping[str, str]
    cache: str | None
    log_to: str | None


_benches: dict[str, Workbench] = {}
"""That of the run whose tasks this process works on, by `Errand.run`: one task after the other needs its model."""


def _bench(errand: Errand, progress: Progress) -> Workbench:
    """A workbench, with the threads, the plugins and the working directory of the driver."""
    install_redaction()
    check_versions(versions(), socket.gethostname(), errand.versions)
    torch.set_num_threads(errand.threads)
    found = _benches.get(errand.run)
    if found is None:
        _enter(errand)
        load_plugin(*errand.config.plugins)
        _benches.clear()
        found = _benches[errand.run] = Workbench(errand.config, progress)
    found.progress = progress
    return found


def _enter(errand: Errand) -> None:
    """Be where the driver is, if its plugins are there as it has them, or in a new folder that has them.

    The cache folder is the driver's, too, or the node's own: a run before may have had another.
    """
    os.environ.pop("SAE_BENCH_CACHE", None)
    if cache := errand.cache or OWN_CACHE:
        os.environ["SAE_BENCH_CACHE"] = cache
    here = Path(errand.here)
    there = [(here / name, content) for name, content in errand.plugins.items()]
    if here.is_dir() and all(path.is_file() and path.read_bytes() == content for path, content in there):
        os.chdir(here)
        return
    new = Path(tempfile.mkdtemp(prefix="sae-arch-bench-"))
    for name, content in errand.plugins.items():
        write_bytes(inside(new, name), content)
    os.chdir(new)


def outline(errand: Errand, kernels: Mapping[str, Crossovers]) -> tuple[RunOutline, Provenance]:
    """What the run will be, found on the cluster, for the driver may have no device."""
    bench = _bench(errand, Progress(quiet=True))
    bench.read_held_out()
    return bench.outline(kernels), bench.provenance()


def grown_text(errand: Errand, order: Order, overlaps: bool) -> str:
    """Read what a run needs whose evaluation grows; the fingerprint of its training text, if `overlaps` are counted."""
    bench = _bench(errand, Progress(quiet=True))
    read_grown_text(bench, order)
    return read_training_text(bench)[0] if overlaps else ""


def plan(errand: Errand, saes: Collection[str], trained: Collection[str], n_devices: int, n_bytes: int) -> list[Cell]:
    """The cells of some SAEs, given by name, for so many devices like this process's, in the order to begin them in.

    Those `trained` are only evaluated. `n_bytes` are a CPU cell's; a GPU is asked.
    """
    bench = _bench(errand, Progress(quiet=True))
    fleet = _fleet(bench, n_devices, n_bytes)
    plans = [plan for plan in bench.plans.values() if plan.id in saes]
    own = [plan for plan in plans if isinstance(plan, SAEPlan)]
    cells = plan_sweep(errand.config, bench.lm, own, fleet, trained).cells if own else ()
    imported = [plan.id for plan in plans if not isinstance(plan, SAEPlan)]
    parts = [tuple(imported[i::n_devices]) for i in range(min(n_devices, len(imported)))]
    return [*cells, *(Cell(f"imported-{digest_of(part)[:12]}", part, float(len(part)), 0, 0.0) for part in parts)]


def paying(errand: Errand, saes: Collection[str], trained: Collection[str], n_devices: int, n_bytes: int) -> int:
    """How many devices a shared capture serves where it pays, if all of these SAEs are planned anew; 0 where not."""
    bench = _bench(errand, Progress(quiet=True))
    plans = [plan for plan in bench.plans.values() if plan.id in saes and isinstance(plan, SAEPlan)]
    return paying_trainers(errand.config, bench.lm, plans, _fleet(bench, n_devices, n_bytes), trained)


def _fleet(bench: Workbench, n_devices: int, n_bytes: int) -> list[Devices]:
    device, kind = bench.lm.device, CPU
    if has_cuda(device):
        kind = next((card for card in CARDS if card in torch.cuda.get_device_name(device)), next(iter(CARDS)))
        n_bytes = int(torch.cuda.mem_get_info(device)[1] * (1 - SPARE_SHARE))
    return [Devices(kind, n_devices, n_bytes)]


def capture(
    errand: Errand,
    order: Order,
    sites: Sequence[Site],
    seeds: Sequence[int],
    *,
    scaling: Scaling | None = None,
    state: Mapping[str, Any] | None = None,
) -> ActivationBuffer:
    """The run's activations at some sites, for some seeds, as every cell of it would capture them for itself."""
    bench, config = _bench(errand, Progress(quiet=True)), order.config
    first = order.earlier[-1].tokens if order.earlier else 0
    serving = Serving(config.batch_size, config.buffer_tokens, config.reuse, seeds, first=first)
    return own_capture(bench.lm, config, bench.progress)(sites=sites, serving=serving, scaling=scaling, state=state)


def cell(
    errand: Errand,
    order: Order,
    name: str,
    saes: Sequence[str],
    apart: bool,
    desk: Any,
    capture: Any = None,
) -> None:
    """Work on a cell, in the folder of `_opened`. Its activations come from `capture`, or are captured here."""
    with (
        stop_signals(),
        _opened(errand, name, saes, desk, apart=apart) as (folder, bring),
        logged(folder.path / "logs" / f"{name}.log") as say,
    ):
        logging.getLogger("sae_bench").setLevel(logging.INFO)
        try:
            progress = CellProgress(name, desk, say)
            progress.report(Report("load"))
            bench = _bench(errand, progress)
            source = partial(SharedSource, capture, name, bench.lm, order.config.tokens) if capture else None
            with log_sink(errand.log_to, folder.path) as sink:
                work_on(bench, order, saes, folder, progress, sink, cell=name, saved=bring, open_source=source)
        except Exception:
            logging.getLogger(__name__).exception("the cell failed")
            raise
        finally:
            if capture:
                capture.leave.remote(name)


def compare(errand: Errand, order: Order, saes: Sequence[str], apart: bool, desk: Any) -> None:
    """Compare SAEs with those of other seeds, all of them among `saes`, in the folder of `_opened`."""
    with stop_signals(), _opened(errand, "compare", saes, desk, apart=apart) as (folder, _):
        quiet = Progress(quiet=True)
        compare_seeds(_bench(errand, quiet), order, saes, folder, quiet)


@contextmanager
def _opened(
    errand: Errand, cell: str, saes: Sequence[str], desk: Any, *, apart: bool
) -> Iterator[tuple[RunFolder, Callable[[], None]]]:
    """The run's folder, or `apart` from it one of the node's own, with what the run has of the cell and its SAEs.

    With it goes what brings all that is new to the driver, which is done at the end, too.
    """
    if not apart:
        if not errand.lock.is_seen:
            raise RuntimeError(f"node {socket.gethostname()} came later, and does not see the run's folder")
        yield RunFolder(Path(errand.lock.path).parent), _nothing
        return
    with tempfile.TemporaryDirectory(prefix="sae-arch-bench-") as own:
        courier = Courier(Path(own), desk)
        courier.fetch(cell, saes)
        try:
            yield RunFolder(Path(own)), courier.bring
        finally:
            courier.bring()


def _nothing() -> None:
    """What is saved is where it belongs."""


class CellProgress(Progress):
    """Reports to the desk; news go into the cell's log."""

    def __init__(self, name: str, desk: Any, say: Callable[[str], None]) -> None:
        super().__init__(quiet=True)
        self._name, self._desk, self._say = name, desk, say

    def say(self, text: str) -> None:
        self._say(text)

    def report(self, report: Report) -> None:
        """Say how far the cell is; nobody waits for it."""
        self._desk.report.remote(self._name, report)

    def track(self, stage: str, items: Iterable[T], total: int, size: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
        done, last = 0, 0.0
        self.note = ""
        for item in items:
            yield item
            done += size(item)
            if time.monotonic() - last > REPORT_S or done >= total:
                self.report(Report(stage, done, total, self.note))
                last = time.monotonic()
        self._say(f"{stage}: {done:,}  {self.note}".rstrip())
