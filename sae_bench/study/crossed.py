"""How sure a share is that raters gave of latents: both are samples, and they are crossed.

Other latents would have been easier, other raters milder. The share is the mean over latents of what their raters said
in the mean, so that each latent counts once, by however many it was seen. Its variance is the sum of two jackknives:
latents left out one by one, and raters left out one by one, each from everything that they were asked about. Both hold
what a rater makes of one latent alone, which is so counted twice: as in the pigeonhole bootstrap (Owen 2007), whose
variance is too large by twice that, the sum errs to the safe side. Unlike its percentiles, which five raters leave too
narrow, the sum comes with degrees of freedom (Satterthwaite 1946), and no random number (docs/study-design.md has both
in simulations).

Shapes: L latents, R raters. NaN where a rater did not answer: nothing is put in its place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

LEVEL = 0.95
Part = tuple[float, Float[ndarray, "_ R"]]
"""A sign, and the answers about a sample of latents."""


@dataclass(frozen=True)
class Crossed:
    """A mean over latents and raters, or a difference of two, with its uncertainty.

    A standard error is None where nothing can be said of it: of fewer than two latents.
    """

    value: float
    stderr: float | None
    degrees: float
    """Of freedom, of the standard error."""
    n_latents: int
    """With an answer, of the smaller of two samples."""
    n_raters: int
    """With an answer. With one, the choice of raters is in no interval."""

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """The interval of a difference, by Student's t; None where there is no standard error, or it is 0."""
        if not self.stderr:
            return None
        half = float(-stats.t.ppf((1 - level) / 2, self.degrees)) * self.stderr
        return max(-1.0, self.value - half), min(1.0, self.value + half)

    def share_interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """The interval of a share: Wilson's (1927), of so many answers as would leave a standard error like this one.

        Where all latents and raters agree there is none, and the share counts as that of so many latents. None for
        fewer than two latents.
        """
        if self.stderr is None:
            return None
        spread = self.value * (1 - self.value)
        n = spread / self.stderr**2 if self.stderr > 0 and spread > 0 else float(self.n_latents)
        t2 = float(stats.t.ppf((1 - level) / 2, self.degrees)) ** 2
        centre = (self.value + t2 / (2 * n)) / (1 + t2 / n)
        half = math.sqrt(t2 * (spread / n + t2 / (4 * n**2))) / (1 + t2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def p_value(self) -> float | None:
        """Two-sided, that a difference is zero; None where there is no standard error, or it is 0."""
        if not self.stderr:
            return None
        return float(2 * stats.t.sf(abs(self.value) / self.stderr, self.degrees))


def mean(answers: Float[ndarray, "L R"]) -> Crossed | None:
    """The mean over latents of the mean over their raters; None if there is no answer at all."""
    return _crossed([(1.0, answers)])


def difference(one: Float[ndarray, "L R"], other: Float[ndarray, "M R"]) -> Crossed | None:
    """The mean of one sample of latents less that of another, seen by the same raters, column by column.

    A rater is left out of both at once, so what he grants all latents cancels.
    """
    return _crossed([(1.0, one), (-1.0, other)])


def _crossed(parts: Sequence[Part]) -> Crossed | None:
    value = _value(parts)
    if value is None:
        return None
    by_latent = [_latent_means(of) for _, of in parts]
    n_latents = min(map(len, by_latent))
    answered = [r for r in range(parts[0][1].shape[1]) if any(np.isfinite(of[:, r]).any() for _, of in parts)]
    if n_latents < 2:
        return Crossed(value, None, math.nan, n_latents, len(answered))
    sources = [(float(means.var(ddof=1)) / len(means), len(means) - 1.0) for means in by_latent]
    of_latents = sum(variance for variance, _ in sources)
    left_out = [_value([(sign, np.delete(of, r, axis=1)) for sign, of in parts]) for r in answered]
    replicates = np.array([one for one in left_out if one is not None])
    n, of_raters = len(replicates), 0.0
    if n > 1:
        of_raters = (n - 1) / n * float(np.square(replicates - replicates.mean()).sum())
        sources.append((of_raters, n - 1.0))
    twice = sum(_of_single_answers(of) for _, of in parts)
    total = max(of_latents + of_raters - twice, of_latents, of_raters)
    squares = sum(variance**2 / degrees for variance, degrees in sources)
    degrees = total**2 / squares if squares > 0 else min(degrees for _, degrees in sources)
    return Crossed(value, math.sqrt(total), degrees, n_latents, len(answered))


def _of_single_answers(answers: Float[ndarray, "L R"]) -> float:
    """The variance that comes from what a rater makes of one latent alone: what latent and rater leave unexplained.

    0 where there are too few answers to tell it from them.
    """
    there = np.isfinite(answers)
    latents, raters = np.nonzero(there)
    n_latents, n_raters = answers.shape
    rows = np.arange(len(latents))
    design = np.zeros((len(latents), n_latents + n_raters))
    design[rows, latents] = design[rows, n_latents + raters] = 1.0
    said = answers[there]
    fitted, _, rank, _ = np.linalg.lstsq(design, said, rcond=None)
    if len(said) <= rank:
        return 0.0
    residual = float(np.square(said - design @ fitted).sum()) / (len(said) - rank)
    n = there.sum(1)[there.any(1)]
    return residual * float((1 / n).sum()) / len(n) ** 2


def _value(parts: Sequence[Part]) -> float | None:
    means = [(sign, _latent_means(of)) for sign, of in parts]
    return None if any(not len(of) for _, of in means) else float(sum(sign * of.mean() for sign, of in means))


def _latent_means(answers: Float[ndarray, "L R"]) -> Float[ndarray, " _"]:
    """The mean of each latent that has an answer."""
    there = np.isfinite(answers)
    n = there.sum(1)
    return np.asarray(np.where(there, answers, 0.0).sum(1)[n > 0] / n[n > 0])
