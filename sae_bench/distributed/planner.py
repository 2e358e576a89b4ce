"""A sweep split into cells, and the cells given to devices: pure functions of numbers, without torch and without Ray.

A cell is what one device does at once: the SAEs that share one stream of activations there.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from sae_bench.errors import UserError


@dataclass(frozen=True)
class Work:
    """One SAE as the planner sees it, on one kind of device.

    `depth` is the number of decoder layers that an activation at its `site` takes. `seconds` are its own: its steps,
    its evaluation and the replays in it, `lm_seconds` of which the language model's.
    """

    id: str
    site: str
    depth: int
    seconds: float
    lm_seconds: float
    state_bytes: int
    """Held from the first step to the last: weights and moments."""
    step_bytes: int
    """Held during a step of its own: gradients and temporaries."""
    buffer_bytes: int
    """The buffer's, of its site; SAEs of one site share it."""


@dataclass(frozen=True)
class Shared:
    """What every cell pays once: `layer_seconds` for each decoder layer down to its deepest site, `seconds` besides."""

    layer_seconds: float
    seconds: float
    n_bytes: int
    """The language model, the process, and what evaluation holds at most."""

    def lm_seconds(self, depth: int) -> float:
        """The language model's part of a cell whose deepest site takes `depth` layers, replays apart."""
        return self.seconds + depth * self.layer_seconds


@dataclass(frozen=True)
class Cell:
    """The SAEs, by the ids of their plans, that share one stream on one device, and what that takes (computed)."""

    id: str
    saes: tuple[str, ...]
    seconds: float
    n_bytes: int
    lm_seconds: float
    """Of `seconds`, those in which the language model runs."""


@dataclass(frozen=True)
class CellPlan:
    """The cells of a sweep, longest first, and the device (its number) that each is meant for."""

    cells: tuple[Cell, ...]
    devices: tuple[int, ...]
    n_devices: int

    @property
    def makespan(self) -> float:
        """Seconds until the last device has done."""
        busy = [0.0] * self.n_devices
        for cell, device in zip(self.cells, self.devices, strict=True):
            busy[device] += cell.seconds
        return max(busy, default=0.0)


def plan_cells(works: Sequence[Work], shared: Shared, n_devices: int, device_bytes: int) -> CellPlan:
    """Split a sweep into cells that fit into `device_bytes`, and give them to the devices, longest first.

    Raises:
        UserError: one SAE alone is too much for a device.
    """
    order = sorted(works, key=lambda work: (work.depth, work.site))  # stable: of one site as they come
    total = sum(work.seconds for work in works) + shared.lm_seconds(max((work.depth for work in works), default=0))
    cells = []
    for part in _cut(order, shared, device_bytes, total / n_devices):
        lm = shared.lm_seconds(part[-1].depth)
        seconds = lm + sum(work.seconds for work in part)
        cells.append((part, seconds, lm + sum(work.lm_seconds for work in part)))
    cells.sort(key=lambda cell: -cell[1])
    busy = [(0.0, device) for device in range(n_devices)]
    devices = []
    for _, seconds, _ in cells:
        until, device = heapq.heappop(busy)
        devices.append(device)
        heapq.heappush(busy, (until + seconds, device))
    named = tuple(
        Cell(f"cell-{i:04d}", tuple(work.id for work in part), seconds, _bytes(part, shared), lm)
        for i, (part, seconds, lm) in enumerate(cells)
    )
    return CellPlan(named, tuple(devices), n_devices)


def _bytes(part: Sequence[Work], shared: Shared) -> int:
    buffers = sum({work.site: work.buffer_bytes for work in part}.values())
    return shared.n_bytes + buffers + sum(w.state_bytes for w in part) + max(w.step_bytes for w in part)


def _cut(order: Sequence[Work], shared: Shared, device_bytes: int, seconds: float) -> list[list[Work]]:
    """Consecutive parts, each as long as bytes and seconds allow, and one SAE at least."""
    parts: list[list[Work]] = []
    spent = 0.0
    for work in order:
        if _bytes([work], shared) > device_bytes:
            raise UserError(
                f"{work.id} needs {_bytes([work], shared) / 1e9:.1f} GB on a device, and one has "
                f"{device_bytes / 1e9:.1f} GB: choose a smaller --width or --buffer-tokens"
            )
        spent += work.seconds
        late = spent + shared.lm_seconds(work.depth) > seconds
        if not parts or late or _bytes([*parts[-1], work], shared) > device_bytes:
            parts.append([])
            spent = work.seconds
        parts[-1].append(work)
    return parts
