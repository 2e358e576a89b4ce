"""Which cells share a capture: rounds of cells that are worked on at a time, in groups with an actor each."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import ray

from sae_bench.distributed import remote
from sae_bench.distributed.planner import Cell
from sae_bench.distributed.shared_capture import start_capture, window_size
from sae_bench.errors import UserError
from sae_bench.runs.train import Order
from sae_bench.runs.workbench import PlannedSAE
from sae_bench.training.serving import Key

CaptureMode = Literal["auto", "shared", "own"]
"""Whether cells share a capture: where the plan says that it pays, wherever it can be, or nowhere."""

Round = list[tuple[Cell, ...]]
"""Groups of cells that are worked on at a time; the cells of a group have one capture."""


def trainers_of(mode: CaptureMode, paying: int, n_devices: int) -> int:
    """How many cells one capture serves at a time; 0: every cell captures for itself.

    `paying` is the plan's number, 0 where a shared capture does not pay.

    Raises:
        UserError: there is no device to train on beside the one that captures.
    """
    if mode == "own":
        return 0
    if mode == "shared" and n_devices < 2:
        raise UserError(
            "--capture shared: the cluster works on one cell at a time, and one would capture and another train; "
            "leave it out, or add a device"
        )
    return paying or (n_devices - 1 if mode == "shared" else 0)


def rounds(cells: Sequence[Cell], n_trainers: int, n_devices: int) -> list[Round]:
    """The cells in the order in which they come, as many at a time as there are devices beside those that capture."""
    n_groups = n_devices // (1 + n_trainers)
    groups = [tuple(cells[i : i + n_trainers]) for i in range(0, len(cells), n_trainers)]
    return [groups[i : i + n_groups] for i in range(0, len(groups), n_groups)]


@dataclass(frozen=True)
class CapturePlan:
    """What a capture is of."""

    errand: remote.Errand
    order: Order
    options: Mapping[str, Any]
    """What Ray is told of a device's worth of work."""
    saes: Mapping[str, PlannedSAE]
    """Those that are still to be trained."""

    def keys(self, cell: Cell) -> list[Key]:
        """What a cell trains on."""
        saes = [self.saes[name] for name in cell.saes if name in self.saes]
        return list(dict.fromkeys((sae.site, sae.config.seed) for sae in saes))

    def start(self, group: Sequence[Cell]) -> dict[str, Any]:
        """A capture for those of some cells that train, by their names."""
        readers = {cell.id: keys for cell in group if (keys := self.keys(cell))}
        if not readers:
            return {}
        keys = list(dict.fromkeys(key for of_reader in readers.values() for key in of_reader))
        sites, seeds = dict.fromkeys(site for site, _ in keys), dict.fromkeys(seed for _, seed in keys)
        actor = start_capture(
            partial(remote.capture, self.errand, self.order, list(sites), list(seeds)),
            readers,
            window=window_size(keys, self.order.config.batch_size),
            name=f"capture for {', '.join(readers)}",
            num_cpus=self.options["num_cpus"],
            num_gpus=self.options["num_gpus"],
        )
        return dict.fromkeys(readers, actor)

    @contextmanager
    def captures(self, groups: Round) -> Iterator[dict[str, Any]]:
        """The captures of a round, by their cells' names; they end with this block."""
        started: dict[str, Any] = {}
        try:
            for group in groups:
                started |= self.start(group)
            yield dict(started)
        finally:
            for actor in {id(actor): actor for actor in started.values()}.values():
                ray.kill(actor)
