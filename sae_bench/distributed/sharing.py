"""What a shared capture would change: one device captures, and serves the batches of several that train.

Instead of a pass of the language model in every cell there is one for all cells that train at the same time. Its price
is the capturing devices, which train nothing, and the batches that are moved; and who trains waits for the slowest of
capture, link and its own steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sae_bench.distributed.planner import CellPlan, plan_cells
from sae_bench.distributed.work import Devices, SAEWork, SharedWork

TRAINERS = (1, 3, 7)
"""How many devices a capture may serve: with it they are a quarter of a host of eight, half of it, or all of it."""

LINK_BYTES = 5e9
"""Bytes of batches that a capture serves in a second through its host's memory: an assumption."""


@dataclass(frozen=True)
class SharedPlan:
    """The sweep with shared captures, each of which serves `n_trainers` devices at a time."""

    n_trainers: int
    makespan: float
    seconds: float
    """Of all devices that are taken, until they have done."""
    lm_seconds: float
    n_bytes: float
    """Batches that are moved, in all."""
    waits_for_link: float
    """The share of the waves whose length the link decides."""


def share_captures(works: Sequence[SAEWork], shared: SharedWork, fleet: Sequence[Devices]) -> SharedPlan | None:
    """The best plan with shared captures on a fleet of one kind; None where there is none, or nothing to train.

    A wave is a capture and the cells that it serves at a time, which are neighbours in depth.
    """
    if len(fleet) != 1 or fleet[0].count < 2 or all(work.trained for work in works):
        return None
    works, without = _without_capture(works, shared)
    found = [_shared(n, works, without, shared.capture_seconds[0], fleet[0]) for n in TRAINERS]
    return min((plan for plan in found if plan), key=lambda plan: (plan.makespan, plan.lm_seconds), default=None)


def _shared(
    n_trainers: int, works: Sequence[SAEWork], without: SharedWork, captured: float, devices: Devices
) -> SharedPlan | None:
    """Groups of one capturing device, a layer of which takes `captured` seconds, and `n_trainers` that only train.

    What is left over of the devices is not taken.
    """
    n_groups = devices.count // (1 + n_trainers)
    if n_groups == 0:
        return None
    cells = plan_cells(works, without, [replace(devices, count=n_groups * n_trainers)]).cells
    cells = tuple(sorted(cells, key=lambda cell: (-cell.depth, cell.sites)))
    streams = {work.id: (work.site, work.seed) for work in works if not work.trained}
    lengths, lm_seconds, moved, linked = [], 0.0, 0, 0
    for first in range(0, len(cells), n_trainers):
        wave = cells[first : first + n_trainers]
        served = [{streams[sae] for sae in cell.saes if sae in streams} for cell in wave]
        capture = captured * max((site.depth for cell in served for site, _ in cell), default=0)
        n_bytes = sum(site.stream_bytes for cell in served for site, _ in cell)
        link, longest = n_bytes / LINK_BYTES, max(cell.seconds for cell in wave)
        lengths.append(max(capture, link, longest))
        lm_seconds += capture + sum(cell.lm_seconds for cell in wave)
        moved += n_bytes
        linked += link > max(capture, longest)
    busy = [0.0] * n_groups
    for length in sorted(lengths, reverse=True):
        busy[busy.index(min(busy))] += length
    taken = n_groups * (1 + n_trainers)
    return SharedPlan(n_trainers, max(busy), max(busy) * taken, lm_seconds, moved, linked / len(lengths))


def _without_capture(works: Sequence[SAEWork], shared: SharedWork) -> tuple[list[SAEWork], SharedWork]:
    """The work of those that train what another device captures: neither model nor buffers, while they train."""
    training, evaluation, latents = shared.n_bytes
    rest = replace(
        shared,
        layer_seconds=tuple(x - y for x, y in zip(shared.layer_seconds, shared.capture_seconds, strict=True)),
        capture_seconds=tuple(0.0 for _ in shared.capture_seconds),
        n_bytes=(training - shared.lm_bytes, evaluation, latents),
    )
    sites = {work.site: replace(work.site, n_bytes=(0, *work.site.n_bytes[1:])) for work in works}
    return [replace(work, site=sites[work.site]) for work in works], rest


def pays(own: CellPlan, shared: SharedPlan | None) -> bool:
    """Whether the sweep is done sooner with shared captures."""
    return shared is not None and shared.makespan < own.makespan
