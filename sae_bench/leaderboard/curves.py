"""Architectures compared where it is fair: at the same L0.

An SAE with more active latents reconstructs better, so a metric is a curve over L0, and two architectures are compared
on their curves at stated L0s, or by the area between. Curves are monotone cubics (PCHIP) through the measured points,
in the logarithm of L0, and never extrapolated. A bootstrap draws thousands of them, each with L0s of its own, so all
replicates are worked out at once.

Shapes: R replicates, T sparsity targets, Q wanted L0s.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

AT_L0 = (20.0, 50.0, 100.0, 150.0)
"""Where architectures are compared unless told otherwise."""


def measured_range(l0: Float[ndarray, " T"]) -> tuple[float, float]:
    """The L0s between which a curve is known."""
    return float(l0.min()), float(l0.max())


def common_range(curves: Sequence[Float[ndarray, " _"]]) -> tuple[float, float] | None:
    """The L0s that all of some curves cover; None if there are none."""
    low = max(measured_range(l0)[0] for l0 in curves)
    high = min(measured_range(l0)[1] for l0 in curves)
    return (low, high) if low < high else None


class Curves:
    """A metric over log L0 for every replicate: Fritsch and Carlson's monotone cubics, as scipy's PchipInterpolator.

    Points that have the same L0 in the data themselves, as targets that could not be reached may have, are averaged.
    """

    def __init__(self, l0: Float[ndarray, "R T"], value: Float[ndarray, "R T"]) -> None:
        _, place = np.unique(l0[0], return_inverse=True)
        groups = [place == i for i in range(place.max() + 1)]
        x = np.stack([np.log(l0[:, group]).mean(1) for group in groups], axis=1)
        y = np.stack([value[:, group].mean(1) for group in groups], axis=1)
        order = np.argsort(x, axis=1, kind="stable")  # in some replicate two near targets may change places
        self.x, self.y = np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)
        # A step of nothing between two points that fell together has no slope, and no width that would show it.
        self.width = np.maximum(np.diff(self.x, axis=1), 1e-12)
        self.rise = np.diff(self.y, axis=1) / self.width
        self.slope = _slopes(self.width, self.rise)

    def __call__(self, l0: Float[ndarray, "R Q"]) -> Float[ndarray, "R Q"]:
        """The heights at some L0s of each replicate; where its curve ends just short of one, its end point stands."""
        at = np.clip(np.log(l0), self.x[:, :1], self.x[:, -1:])
        if self.x.shape[1] == 1:
            return np.broadcast_to(self.y, at.shape).copy()
        piece, t = self._place(at)
        return _cubic(*self._ends(piece), t)

    def integral(self, l0: Float[ndarray, "R Q"]) -> Float[ndarray, "R Q"]:
        """The area under each curve, over log L0, from its first point to some L0s."""
        at = np.clip(np.log(l0), self.x[:, :1], self.x[:, -1:])
        if self.x.shape[1] == 1:
            return np.zeros_like(at)
        whole = self.width * ((self.y[:, 1:] + self.y[:, :-1]) / 2
                              + self.width * (self.slope[:, :-1] - self.slope[:, 1:]) / 12)  # fmt: skip
        before = np.concatenate([np.zeros_like(whole[:, :1]), np.cumsum(whole, axis=1)], axis=1)
        piece, t = self._place(at)
        return np.asarray(np.take_along_axis(before, piece, 1) + _cubic_area(*self._ends(piece), t))

    def _place(self, at: Float[ndarray, "R Q"]) -> tuple[ndarray, Float[ndarray, "R Q"]]:
        """Which piece each position falls into, and how far along it, from 0 to 1."""
        piece = (at[:, :, None] >= self.x[:, None, 1:-1]).sum(2)
        start, width = np.take_along_axis(self.x, piece, 1), np.take_along_axis(self.width, piece, 1)
        return piece, np.minimum((at - start) / width, 1.0)

    def _ends(self, piece: ndarray) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray]:
        """Width, and heights and slopes at both ends, of some pieces."""
        y0, y1 = (np.take_along_axis(self.y, piece + end, 1) for end in (0, 1))
        d0, d1 = (np.take_along_axis(self.slope, piece + end, 1) for end in (0, 1))
        return np.take_along_axis(self.width, piece, 1), y0, y1, d0, d1


def _slopes(width: Float[ndarray, "R P"], rise: Float[ndarray, "R P"]) -> Float[ndarray, "R T"]:
    """The derivative at every point: a weighted harmonic mean of its neighbours' rises, 0 at a turning point."""
    if rise.shape[1] < 2:
        return np.repeat(rise, 2, axis=1)
    left, right = 2 * width[:, 1:] + width[:, :-1], width[:, 1:] + 2 * width[:, :-1]
    same_way = rise[:, 1:] * rise[:, :-1] > 0
    before, after = np.where(same_way, rise[:, :-1], 1.0), np.where(same_way, rise[:, 1:], 1.0)
    inner = np.where(same_way, (left + right) / (left / before + right / after), 0.0)
    first = _end_slope(width[:, 0], width[:, 1], rise[:, 0], rise[:, 1])
    last = _end_slope(width[:, -1], width[:, -2], rise[:, -1], rise[:, -2])
    return np.concatenate([first[:, None], inner, last[:, None]], axis=1)


def _end_slope(h0: ndarray, h1: ndarray, m0: ndarray, m1: ndarray) -> ndarray:
    """The one-sided three-point derivative, kept from overshooting."""
    slope = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1)
    slope = np.where(slope * m0 <= 0, 0.0, slope)
    return np.where((m0 * m1 < 0) & (np.abs(slope) > 3 * np.abs(m0)), 3 * m0, slope)


def _cubic(h: ndarray, y0: ndarray, y1: ndarray, d0: ndarray, d1: ndarray, t: ndarray) -> ndarray:
    """Hermite's cubic between two points."""
    return np.asarray(
        y0 * (1 + 2 * t) * (1 - t) ** 2 + y1 * t**2 * (3 - 2 * t) + h * t * (1 - t) * (d0 * (1 - t) - d1 * t)
    )


def _cubic_area(h: ndarray, y0: ndarray, y1: ndarray, d0: ndarray, d1: ndarray, t: ndarray) -> ndarray:
    """Its integral from 0 to t."""
    upper = t**3 - t**4 / 2  # of 3t^2 - 2t^3
    return np.asarray(
        h * (y0 * (t - upper) + y1 * upper
             + h * (d0 * (t**2 / 2 - 2 * t**3 / 3 + t**4 / 4) - d1 * (t**3 / 3 - t**4 / 4)))
    )  # fmt: skip


def at_l0(l0: Float[ndarray, "R T"], value: Float[ndarray, "R T"], wanted: Sequence[float]) -> Float[ndarray, "R Q"]:
    """Every replicate's curve at the wanted L0s."""
    return Curves(l0, value)(np.tile(np.asarray(wanted, dtype=float), (len(l0), 1)))


def area(l0: Float[ndarray, "R T"], value: Float[ndarray, "R T"], between: tuple[float, float]) -> Float[ndarray, " R"]:
    """Mean height of every replicate's curve over log L0 between two L0s, or as far as it reaches."""
    ends = np.clip(np.tile(between, (len(l0), 1)), l0.min(1, keepdims=True), l0.max(1, keepdims=True))
    below = Curves(l0, value).integral(ends)
    width = np.log(ends[:, 1] / ends[:, 0])
    return np.asarray((below[:, 1] - below[:, 0]) / width)


def pareto_front(l0: Sequence[float], value: Sequence[float], *, up: bool) -> list[int]:
    """Which points no other one beats with as few active latents or fewer; `up`: larger values are better."""
    order = sorted(range(len(l0)), key=lambda i: (l0[i], -value[i] if up else value[i]))
    front: list[int] = []
    for i in order:
        if not front or (value[i] > value[front[-1]] if up else value[i] < value[front[-1]]):
            front.append(i)
    return front
