"""Architectures compared where it is fair: at the same L0.

An SAE with more active latents reconstructs better, so a metric is a curve over L0, and two architectures are compared
on their curves at stated L0s, or by the area between. Curves are monotone cubics (PCHIP) through the measured points,
in the logarithm of L0, and never extrapolated.

Shapes: R replicates, T sparsity targets, Q wanted L0s.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.interpolate import PchipInterpolator

AT_L0 = (20.0, 50.0, 100.0, 150.0)
"""Where architectures are compared unless told otherwise."""


def measured_range(l0: Float[ndarray, "T"]) -> tuple[float, float]:
    """The L0s between which a curve is known."""
    return float(l0.min()), float(l0.max())


def common_range(curves: Sequence[Float[ndarray, "_"]]) -> tuple[float, float] | None:
    """The L0s that all of some curves cover; None if there are none."""
    low = max(measured_range(l0)[0] for l0 in curves)
    high = min(measured_range(l0)[1] for l0 in curves)
    return (low, high) if low < high else None


def curve(l0: Float[ndarray, "T"], value: Float[ndarray, "T"]) -> PchipInterpolator:
    """The metric over log L0. Points of the same L0, as targets that could not be reached may be, are averaged."""
    at, place = np.unique(np.log(l0), return_inverse=True)
    means = np.bincount(place, value) / np.bincount(place)
    if len(at) == 1:
        at, means = np.array([at[0] - 1e-9, at[0]]), np.repeat(means, 2)
    return PchipInterpolator(at, means, extrapolate=False)


def at_l0(l0: Float[ndarray, "R T"], value: Float[ndarray, "R T"], wanted: Sequence[float]) -> Float[ndarray, "R Q"]:
    """Every replicate's curve at the wanted L0s.

    A replicate's L0s move a little; where one then ends just short of a wanted L0, its end point stands.
    """
    found = np.empty((len(l0), len(wanted)))
    for i, (x, y) in enumerate(zip(l0, value, strict=True)):
        found[i] = curve(x, y)(np.log(np.clip(wanted, x.min(), x.max())))
    return found


def area(l0: Float[ndarray, "R T"], value: Float[ndarray, "R T"], between: tuple[float, float]) -> Float[ndarray, "R"]:
    """Mean height of every replicate's curve over log L0 between two L0s."""
    low, high = between
    found = np.empty(len(l0))
    for i, (x, y) in enumerate(zip(l0, value, strict=True)):
        start, end = np.log(np.clip((low, high), x.min(), x.max()))
        found[i] = curve(x, y).integrate(start, end) / (end - start)
    return found


def pareto_front(l0: Sequence[float], value: Sequence[float], *, up: bool) -> list[int]:
    """Which points no other one beats with as few active latents or fewer; `up`: larger values are better."""
    order = sorted(range(len(l0)), key=lambda i: (l0[i], -value[i] if up else value[i]))
    front: list[int] = []
    for i in order:
        if not front or (value[i] > value[front[-1]] if up else value[i] < value[front[-1]]):
            front.append(i)
    return front
