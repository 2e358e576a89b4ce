"""A sweep split into cells, and the cells given to devices: pure functions of numbers, without torch and without Ray.

A cell is the SAEs that share one stream on one device. It costs what its SAEs cost, and one pass of the language model
down to its deepest site, whatever else is in it. The aim is the least makespan: the time when the last device has done.

What is the optimum? Of cells that memory bounds, the language model's work is least when the SAEs are sorted by the
depth of their sites and cut, from the deepest on, into cells as full as they can be: exchanging two SAEs of one size
between two cells, so that the deeper ones come together, makes no deepest site deeper. Sorted by site within a depth, a
site's buffer is held in as few cells as can be, too. So only cuts of this one line are looked at, which is partitioning
in one dimension (Pinar and Aykanat 2004): for a bound on a cell's seconds, filling each cell as far as bytes and bound
allow makes the fewest cells, and the least bound for a given number of cells is found by bisection. Few cells are least
work, and many balance better; so the bound is found for one cell a device, two, and so on, from what memory asks for.
Where a run goes on, an SAE that is trained already asks for no pass over the tokens that are trained on, and holds
nothing while others train; in a cell of its own kind it costs nobody such a pass, beside others no start of its own.
So both are tried: one line of all, and a line for each kind.
Each time the cells are given to devices longest first, each to the device that has done with it earliest: at most 4/3
of the least makespan of these cells on equal devices (Graham 1969), and far less where there are many. The best of
these plans is returned; `least_makespan` says how far from the best of all it can be.

Nothing here changes what an SAE learns: which SAEs share a cell decides when they are trained, and not on what. A plan
depends on the devices, and on what was measured; so a run that has begun keeps the one that it began with.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from sae_bench.distributed.work import Devices, Line, SAEWork, SharedWork, Stretch, cut, cut_into
from sae_bench.errors import UserError
from sae_bench.records.files import digest_of
from sae_bench.records.names import file_name

MORE_ROUNDS = 3
"""How many numbers of cells a device are tried, from what memory asks for."""


@dataclass(frozen=True)
class Cell:
    """The SAEs, by the ids of their plans, that share one stream on one device, and what that takes (computed)."""

    id: str
    """Follows from what is in it, and is safe in a path."""
    saes: tuple[str, ...]
    seconds: float
    """On the device that it is meant for."""
    n_bytes: int
    """At the peak, at most."""
    lm_seconds: float
    """Of `seconds`, those in which the language model runs."""
    capture_seconds: float = 0.0
    """Of `lm_seconds`, those that a shared capture would save."""
    evaluation_seconds: float = 0.0
    """Of `lm_seconds`, those that come after the training."""
    sites: tuple[str, ...] = ()
    depth: int = 0


@dataclass(frozen=True)
class CellPlan:
    """The cells of a sweep, in the order in which they should be begun, and the number of the device of each."""

    cells: tuple[Cell, ...]
    device_of: tuple[int, ...]
    fleet: tuple[Devices, ...]

    @property
    def n_devices(self) -> int:
        return sum(devices.count for devices in self.fleet)

    @property
    def busy(self) -> list[float]:
        """Seconds that each device works."""
        busy = [0.0] * self.n_devices
        for cell, device in zip(self.cells, self.device_of, strict=True):
            busy[device] += cell.seconds
        return busy

    @property
    def makespan(self) -> float:
        """Seconds until the last device has done."""
        return max(self.busy, default=0.0)

    @property
    def seconds(self) -> float:
        """Of all devices together."""
        return sum(cell.seconds for cell in self.cells)

    @property
    def utilisation(self) -> float:
        """The share of the makespan that devices work."""
        return self.seconds / (self.n_devices * self.makespan) if self.cells else 1.0

    @property
    def lm_share(self) -> float:
        """The share of the work that is the language model's."""
        return sum(cell.lm_seconds for cell in self.cells) / self.seconds if self.cells else 0.0


def plan_cells(works: Sequence[SAEWork], shared: SharedWork, fleet: Sequence[Devices]) -> CellPlan:
    """Split a sweep into cells that fit into every device of the fleet, and give them to the devices.

    Each cell can run on any device, and so go on wherever one is left.

    Raises:
        UserError: one SAE alone is too much for a device.
    """
    if not works:
        return CellPlan((), (), tuple(fleet))
    line, smallest = Line(works, shared), min(fleet, key=lambda devices: devices.n_bytes)
    parts = [[work for work in works if work.trained == trained] for trained in (False, True)]
    ways = [[line], [Line(part, shared) for part in parts]] if all(parts) else [[line]]
    for i, work in enumerate(line.works):
        if (needed := line.n_bytes(i, i + 1)) > smallest.n_bytes:
            raise UserError(
                f"{work.id} alone needs {needed / 1e9:.1f} GB, and one {smallest.kind} has {smallest.n_bytes / 1e9:.1f}"
                " GB for it: choose a smaller --width or --buffer-tokens, or other --devices"
            )
    n_devices, cuts = sum(devices.count for devices in fleet), []
    for lines in ways:
        cuts.append(fullest := cut(lines, smallest.n_bytes))
        rounds = ceil(len(fullest) / n_devices)
        cuts += [cut_into(lines, n * n_devices, smallest.n_bytes) for n in range(rounds, rounds + MORE_ROUNDS)]
    return min((_assigned(stretches, fleet) for stretches in cuts), key=lambda plan: plan.makespan)


def _assigned(stretches: Sequence[Stretch], fleet: Sequence[Devices]) -> CellPlan:
    """The cells given to devices: the longest first, each to the device that has done with it earliest."""
    free: list[list[tuple[float, int]]] = []
    n = 0
    for devices in fleet:
        free.append([(0.0, n + i) for i in range(devices.count)])
        n += devices.count
    cells, device_of = [], []
    for line, first, last in sorted(stretches, key=lambda stretch: -stretch[0].seconds(*stretch[1:])):
        on_each = [_cell(line, first, last, kind) for kind in range(len(fleet))]
        kind = min(range(len(fleet)), key=lambda kind: free[kind][0][0] + on_each[kind].seconds)
        until, device = free[kind][0]
        heapq.heapreplace(free[kind], (until + on_each[kind].seconds, device))
        cells.append(on_each[kind])
        device_of.append(device)
    return CellPlan(tuple(cells), tuple(device_of), tuple(fleet))


def _cell(line: Line, first: int, last: int, kind: int) -> Cell:
    works, shared = line.works[first:last], line.shared
    sites = {work.site.name: work.site for work in works}
    depth, training_depth = works[0].site.depth, line.training_depth(first, last)
    of_sites = sum(site.seconds[kind] for site in sites.values())
    lm = shared.lm_seconds(depth, training_depth, kind) + of_sites
    replays = sum(work.lm_seconds[kind] for work in works)
    ids = tuple(work.id for work in works)
    where = "-".join(dict.fromkeys((works[0].site.name, works[-1].site.name)))
    return Cell(
        id=file_name(f"{where}.{digest_of(ids)[:8]}"),
        saes=ids,
        seconds=shared.start_seconds[kind] + lm + sum(work.seconds[kind] for work in works),
        n_bytes=line.n_bytes(first, last),
        lm_seconds=lm + replays,
        capture_seconds=training_depth * shared.capture_seconds[kind],
        evaluation_seconds=shared.pass_seconds[kind] + of_sites + replays,
        sites=tuple(sites),
        depth=depth,
    )


def least_makespan(works: Sequence[SAEWork], shared: SharedWork, fleet: Sequence[Devices]) -> float:
    """Seconds that no plan whatever can do with less.

    One SAE alone takes its own time. And all devices together have at least the SAEs' work, and of the language model's
    as much as memory asks for: to layer d go at least as many cells as the SAEs that deep need, and over training's
    tokens as many as those of them need that are left to train.
    """
    if not works:
        return 0.0
    kinds = range(len(fleet))
    start, passes, capture = (min(x) for x in (shared.start_seconds, shared.pass_seconds, shared.capture_seconds))
    rest = min(x - y for x, y in zip(shared.layer_seconds, shared.capture_seconds, strict=True))
    to_train = [work for work in works if not work.trained]
    alone = max(
        start + passes + work.site.depth * (rest + (0 if work.trained else capture)) + min(work.seconds)
        for work in works
    )
    room = max(devices.n_bytes for devices in fleet)
    used = min(sum(devices.count for devices in fleet), len(works))
    n_devices = sum(devices.count for devices in fleet)

    def cells(works: Sequence[SAEWork], depth: int) -> int:
        """How many must reach that deep."""
        deep = [work for work in works if work.site.depth >= depth]
        sums = [sum(work.n_bytes[stage] for work in deep) for stage in range(len(shared.n_bytes))]
        return max(1, *(ceil(x / max(room - base, 1)) for x, base in zip(sums, shared.n_bytes, strict=True)))

    def layers(works: Sequence[SAEWork], n_cells: int) -> int:
        """How many all cells go through together, if there are so many at least."""
        depths = sorted({work.site.depth for work in works})
        n = sum((depth - before) * cells(works, depth) for before, depth in zip([0, *depths], depths, strict=False))
        return n + (max(0, n_cells - cells(works, depths[0])) * depths[0] if works else 0)

    lm = rest * layers(works, used) + capture * layers(to_train, 0 if len(to_train) < len(works) else used)
    lm += max(used, cells(works, 1)) * (start + passes)
    own = sum(min(work.seconds[kind] for kind in kinds) for work in works)
    return max(alone, (own + lm) / n_devices)
