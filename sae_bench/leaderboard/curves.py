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


def measured_range(l0: Float[ndarray, " T"]) -> tuple[float, float]:
    """The L0s between which a curve is known."""
    return float(l0.min()), float(l0.max())


def common_range(curves: Sequence[Float[ndarray, " _"]]) -> tuple[float, float] | None:
    """The L0s that all of some curves cover; None if there are none."""
    low = max(measured_range(l0)[0] for l0 in curves)
    high = min(measured_range(l0)[1] for l0 in curves)
    return (low, high) if low < high else None


def _points(l0: Float[ndarray, "R T"], value: Float[ndarray, "R T"]) -> tuple[ndarray, ndarray]:
    """The logarithm of every point's L0, from the smallest up, and its value.

    Points that have the same L0 in the data themselves, as targets that could not be reached may have, are averaged.
    """
    _, place = np.unique(l0[0], return_inverse=True)
    groups = [place == i for i in range(place.max() + 1)]
    x = np.stack([np.log(l0[:, group]).mean(1) for group in groups], axis=1)
    y = np.stack([value[:, group].mean(1) for group in groups], axis=1)
    order = np.argsort(x, axis=1, kind="stable")  # in some replicate two near targets may change places
    return np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)


def _heights(x: Float[ndarray, "R P"], y: Float[ndarray, "R P"], at: Float[ndarray, "R Q"]) -> Float[ndarray, "R Q"]:
    """Fritsch and Carlson's monotone cubics, as scipy's PchipInterpolator, at some positions of each replicate.

    Where a curve ends just short of one, its end point stands.
    """
    at = np.clip(at, x[:, :1], x[:, -1:])
    if x.shape[1] == 1:
        return np.broadcast_to(y, at.shape).copy()
    # A step of nothing between two points that fell together has no slope, and no width that would show it.
    width = np.maximum(np.diff(x, axis=1), 1e-12)
    slope = _slopes(width, np.diff(y, axis=1) / width)
    piece = (at[:, :, None] >= x[:, None, 1:-1]).sum(2)
    (x0, y0, d0), (_, y1, d1) = ([np.take_along_axis(of, piece + end, 1) for of in (x, y, slope)] for end in (0, 1))
    h = np.take_along_axis(width, piece, 1)
    t = np.minimum((at - x0) / h, 1.0)
    bent = h * t * (1 - t) * (d0 * (1 - t) - d1 * t)
    return np.asarray(y0 * (1 + 2 * t) * (1 - t) ** 2 + y1 * t**2 * (3 - 2 * t) + bent)


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


def at_l0(l0: Float[ndarray, "R T"], value: Float[ndarray, "R T"], wanted: Sequence[float]) -> Float[ndarray, "R Q"]:
    """Every replicate's curve at the wanted L0s."""
    return _heights(*_points(l0, value), np.tile(np.log(wanted), (len(l0), 1)))


def area(l0: Float[ndarray, "R T"], value: Float[ndarray, "R T"], between: tuple[float, float]) -> Float[ndarray, " R"]:
    """Mean height of every replicate's curve over log L0 between two L0s, or as far as it reaches."""
    x, y = _points(l0, value)
    knots = np.clip(x, *np.log(between))  # a piece outside has no width
    middle, half = (knots[:, 1:] + knots[:, :-1]) / 2, np.diff(knots, axis=1) / 2
    # Gauss and Legendre's two points are exact for cubics.
    both = sum(_heights(x, y, middle + side * half / 3**0.5) for side in (-1, 1))
    return np.asarray((half * both).sum(1) / np.ptp(knots, axis=1))


def pareto_front(l0: Sequence[float], value: Sequence[float], *, up: bool) -> list[int]:
    """Which points no other one beats with as few active latents or fewer; `up`: larger values are better."""
    order = sorted(range(len(l0)), key=lambda i: (l0[i], -value[i] if up else value[i]))
    front: list[int] = []
    for i in order:
        if not front or (value[i] > value[front[-1]] if up else value[i] < value[front[-1]]):
            front.append(i)
    return front
