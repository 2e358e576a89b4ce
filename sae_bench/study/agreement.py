"""Whether raters agree with each other, and with themselves: Krippendorff's alpha, and what the second look says.

alpha = 1 - D_o / D_e: the disagreement within units over that of chance, 1 for perfect agreement and 0 for none beyond
chance (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"). Units that one rater alone has seen say
nothing and count for nothing; nothing is imputed.

Shapes: U units, C categories, in their order.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import stats

from sae_bench.study.crossed import LEVEL, ROUNDING

Kind = Literal["nominal", "ordinal"]


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha of some units; None where nobody can tell, with the reason."""

    value: float | None
    interval: tuple[float, float] | None
    """95%, over the choice of units: a jackknife of the ratio, by Student's t. None for fewer than three units."""
    n_units: int
    """That two raters or more have seen."""
    note: str | None = None


def alpha(counts: Int[ndarray, "U C"], kind: Kind) -> Alpha:
    """Krippendorff's alpha, from how many raters put each unit into each category."""
    counts = np.asarray(counts, dtype=float)
    counts = counts[counts.sum(1) >= 2]
    value = _alpha(counts, kind)
    if not len(counts):
        return Alpha(None, None, 0, "no unit was seen twice")
    if value is None:
        return Alpha(None, None, len(counts), "all answers are the same")
    left_out = [_alpha(np.delete(counts, unit, axis=0), kind) for unit in range(len(counts))]
    values = np.array([one for one in left_out if one is not None])
    n = len(values)
    if n < 3:
        return Alpha(value, None, len(counts))
    stderr = math.sqrt((n - 1) / n * float(np.square(values - values.mean()).sum()))
    half = -float(stats.t.ppf((1 - LEVEL) / 2, n - 1)) * stderr
    return Alpha(value, (value - half, min(1.0, value + half)) if stderr > ROUNDING else None, len(counts))


def _alpha(counts: Float[ndarray, "U C"], kind: Kind) -> float | None:
    """Alpha; None where every answer is the same, or there is none."""
    coincidences = _coincidences(counts)
    totals = coincidences.sum(0)
    n = totals.sum()
    if np.count_nonzero(totals) < 2:
        return None
    apart = _apart(totals, kind)
    expected = float((np.outer(totals, totals) * apart).sum()) / float(n - 1)
    return 1.0 - float((coincidences * apart).sum()) / expected


def _coincidences(counts: Float[ndarray, "U C"]) -> Float[ndarray, "C C"]:
    """Pairs of answers within units, each of them with the weight 1 / (answers of its unit - 1)."""
    weighted = counts / np.maximum(counts.sum(1, keepdims=True) - 1, 1)
    return np.asarray(counts.T @ weighted - np.diag(weighted.sum(0)))


def _apart(totals: Float[ndarray, " C"], kind: Kind) -> Float[ndarray, "C C"]:
    """The squared difference of two categories; ordinal: the answers between them, by half those in either, squared."""
    if kind == "nominal":
        return 1 - np.eye(len(totals))
    ranks = np.cumsum(totals) - totals / 2
    return np.asarray(np.square(ranks[:, None] - ranks[None, :]))


def as_counts(answers: Float[ndarray, "U R"], n_categories: int) -> Int[ndarray, "U C"]:
    """How many raters put each unit into each category, from the category that each rater put it into, or NaN."""
    return np.stack([(answers == category).sum(1) for category in range(n_categories)], axis=1)
