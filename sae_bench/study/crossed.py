"""How sure a share is that raters gave of latents: both are samples, and they are crossed.

Other latents would have been easier, other raters milder. The share is the mean over latents of what their raters said
in the mean, so that each latent counts once, by however many it was seen. Its variance is the sum of two: that of
latents, and a jackknife over raters, each left out of everything that he was asked about, less what the second has of
latents and of single answers, which is in the first already. That is the crossed random-effects model by its moments,
for any design and with gaps (Gao and Owen 2017), with Satterthwaite's degrees of freedom (1946) and no random number.
The pigeonhole bootstrap (Owen 2007) of five raters is too narrow between percentiles (docs/study-design.md has both in
simulations).

Shapes: L latents, R raters. NaN where a rater did not answer: nothing is put in its place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import stats

LEVEL = 0.95
ROUNDING = 1e-9
"""A standard error of a share below it is that of numbers which differ in their last bits: there is none."""
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

    def share_stderr(self) -> float | None:
        """The standard error of a share, of which nobody is certain because the few who were asked agree.

        Where it would be 0 it is that of so many latents, at the share with one yes and one no more (Laplace).
        """
        if self.stderr != 0:
            return self.stderr
        share = (self.n_latents * self.value + 1) / (self.n_latents + 2)
        return math.sqrt(share * (1 - share) / self.n_latents)

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
    sources = [(_rounded(float(means.var(ddof=1)) / len(means)), len(means) - 1.0) for means in by_latent]
    of_latents = sum(variance for variance, _ in sources)
    left_out = [_value([(sign, np.delete(of, r, axis=1)) for sign, of in parts]) for r in answered]
    replicates = np.array([one for one in left_out if one is not None])
    n, of_raters = len(replicates), 0.0
    if n > 1:
        of_raters = _rounded((n - 1) / n * float(np.square(replicates - replicates.mean()).sum()))
        sources.append((of_raters, n - 1.0))
    again = sum(_of_latents_in_raters(of) for _, of in parts) if n > 1 else 0.0
    total = max(of_latents + of_raters - again, of_latents)
    squares = sum(variance**2 / degrees for variance, degrees in sources)
    fewest = min(of for variance, of in sources if variance > 0) if squares > 0 else n_latents - 1.0
    degrees = max(total**2 / squares, fewest) if squares > 0 else fewest  # what was taken off has no degrees to lose
    return Crossed(value, math.sqrt(total), degrees, n_latents, len(answered))


def _rounded(variance: float) -> float:
    return variance if variance > ROUNDING**2 else 0.0


def _of_latents_in_raters(answers: Float[ndarray, "L R"]) -> float:
    """What a jackknife over raters shows, in expectation, though all raters are alike: it is due to the answers left.

    Each replicate is a weighted sum of answers; the variance of their weights is the factor of the single answers', and
    that of their sums by latent the factor of the latents'.
    """
    there = np.isfinite(answers)
    parts = components(answers)
    if parts is None:  # nobody saw what another saw: an answer is its latent's
        means = _latent_means(answers)
        parts = float(means.var(ddof=1)), 0.0
    weights = np.array([_weights(there & (np.arange(there.shape[1]) != r)) for r in np.flatnonzero(there.any(0))])
    if len(weights) < 2:
        return 0.0
    apart = (weights - weights.mean(0)) * math.sqrt((len(weights) - 1) / len(weights))
    return parts[0] * float(np.square(apart.sum(2)).sum()) + parts[1] * float(np.square(apart).sum())


def _weights(there: Bool[ndarray, "L R"]) -> Float[ndarray, "L R"]:
    """The weight of each answer in the mean."""
    n = there.sum(1, keepdims=True)
    return np.asarray(there / np.maximum(n, 1) / max(int((n > 0).sum()), 1))


def components(answers: Float[ndarray, "L R"]) -> tuple[float, float] | None:
    """The variance of latents and that of single answers, by moments; None where nobody saw what another saw."""
    of_answers = single_answer_variance(answers)
    n = np.isfinite(answers).sum(1)
    n = n[n > 0]
    if of_answers is None or len(n) < 2:
        return None
    of_means = float(_latent_means(answers).var(ddof=1))
    return max(0.0, of_means - of_answers * float((1 / n).mean())), of_answers


def single_answer_variance(answers: Float[ndarray, "L R"]) -> float | None:
    """The variance of one answer that neither its latent nor its rater explains, by least squares.

    None where there are too few answers to tell it from them.
    """
    there = np.isfinite(answers)
    n = np.maximum(there.sum(1, keepdims=True), 1)
    said = np.where(there, answers, 0.0)
    within = (said - said.sum(1, keepdims=True) / n)[there]  # without what the latent explains
    raters = (np.eye(answers.shape[1])[None] - (there / n)[:, None, :])[there]
    fitted, _, rank, _ = np.linalg.lstsq(raters, within, rcond=None)
    left = int(there.sum() - there.any(1).sum() - rank)
    return float(np.square(within - raters @ fitted).sum()) / left if left > 0 else None


def _value(parts: Sequence[Part]) -> float | None:
    means = [(sign, _latent_means(of)) for sign, of in parts]
    return None if any(not len(of) for _, of in means) else float(sum(sign * of.mean() for sign, of in means))


def _latent_means(answers: Float[ndarray, "L R"]) -> Float[ndarray, " _"]:
    """The mean of each latent that has an answer."""
    there = np.isfinite(answers)
    n = there.sum(1)
    return np.asarray(np.where(there, answers, 0.0).sum(1)[n > 0] / n[n > 0])
