"""Which way products over active pairs are computed: sparse or dense, with screening or without.

All ways give the same values up to rounding. A block says which it wants, or leaves it to what was measured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

Kernels = Literal["auto", "dense", "sparse"]
Screening = Literal["auto", "on", "off"]


class Crossovers(NamedTuple):
    """Where one way of computing the same overtakes another; `kernel_choice` measures those of the machine."""

    dense_above: float = 0.1
    """Share of active pairs above which dense products are used."""
    screen_below: float = 0.0
    """Share of candidate pairs up to which they are found by screening; 0: never."""


_TYPICAL = Crossovers()
_choice = ContextVar("choice", default=_TYPICAL)


def chosen() -> Crossovers:
    """What decides here and now."""
    return _choice.get()


@contextmanager
def kernels(
    choice: Kernels,
    measured: Crossovers | None = None,
    screening: Screening = "auto",
) -> Iterator[None]:
    """Within the block use dense products always, never, or above the density `measured` (None: as outside of it).

    Screening is done up to the share of candidates `measured`, wherever products are sparse, or never.
    """
    auto = _choice.get() if measured is None else measured
    dense_above = {"dense": -1.0, "sparse": 1.0, "auto": auto.dense_above}[choice]
    screen_below = {"on": 1.0, "off": 0.0, "auto": auto.screen_below}[screening]
    before = _choice.set(Crossovers(dense_above, screen_below))
    try:
        yield
    finally:
        _choice.reset(before)
