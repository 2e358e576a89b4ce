"""How sure a number is: a jackknife over seeds and documents, from the records' per-document sums.

Two things would come out otherwise in another experiment: the seeds of the SAEs and the documents they were evaluated
on. All SAEs saw the same documents, so the two are crossed, not nested: each document is left out once, for all SAEs
alike, which pairs every comparison, and each seed is left out once (Efron and Stein, 1981). The two variances add up.

No quantile of Student's distribution fits such a sum exactly. Here the critical value is a weighted mean of the
sources' own, as Cochran's is (1964). Its weights, and how many degrees of freedom heavy-tailed documents leave, were
chosen by integration and by simulation: `docs/comparing.md` has what they reach, `benchmarks/comparisons.py` makes it.

Shapes: R replicates, G documents, S seeds, P values or differences.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy
from jaxtyping import Float
from numpy import ndarray

from sae_bench.records.schema import ON_TEXTS, Record

LEVEL = 0.95

POWER = 0.8
"""How often a difference is to be told that is called tellable."""

MIN_DOCUMENTS = 30
"""With fewer, an interval does not cover what it says, and none is given (docs/comparing.md has the simulation)."""

MIN_DEGREES = 8.0
"""The fewest degrees of freedom that documents are taken to leave, however few of them carry the variance."""


@dataclass(frozen=True)
class Design:
    """The replicates of an experiment, one a row.

    First the data themselves; then each document left out; then, for each architecture, its values moved by the
    standard error of what is known by a standard error alone; then, with two seeds or more, each seed left out; then
    each unit left out of the text that tasks bring, such as a set of labelled texts.
    """

    n_documents: int
    n_seeds: int
    n_architectures: int = 1
    n_units: int = 1

    @staticmethod
    def of(records: Sequence[Record], n_seeds: int, n_architectures: int) -> "Design":
        """The design of SAEs with these records; where tasks' own texts differ in their units, the most of them."""

        def most(*, on_texts: bool) -> int:
            some = [record for record in records if (record.measured_on == ON_TEXTS) == on_texts]
            return max((len(sums) for record in some for sums in record.by_document.values()), default=1)

        return Design(most(on_texts=False), n_seeds, n_architectures, most(on_texts=True))

    @cached_property
    def documents(self) -> slice:
        return slice(1, 1 + self.n_documents if self.n_documents > 1 else 1)

    @cached_property
    def moved(self) -> slice:
        return slice(self.documents.stop, self.documents.stop + self.n_architectures)

    @cached_property
    def seeds(self) -> slice:
        return slice(self.moved.stop, self.moved.stop + (self.n_seeds if self.n_seeds > 1 else 0))

    @cached_property
    def units(self) -> slice:
        return slice(self.seeds.stop, self.seeds.stop + (self.n_units if self.n_units > 1 else 0))

    @cached_property
    def n_replicates(self) -> int:
        return int(self.units.stop)


@dataclass(frozen=True)
class Estimate:
    """A value with its uncertainty; `over_seeds` says whether that covers the choice of seeds.

    An infinite standard error stands for one that is unknown: nothing is told from anything by it.
    """

    value: float
    stderr: float
    sources: tuple[tuple[float, float], ...]
    """What the variance comes from: each source's weight in the critical value, and its degrees of freedom."""
    over_seeds: bool
    n_hypotheses: int = 1
    """How many estimates are judged together: the interval is simultaneous and the p-value corrected (Bonferroni), so
    that an interval ends at zero where the p-value is 1 - its level."""

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval of that level; without bounds where the uncertainty is unknown."""
        half = self.critical((1 - level) / 2 / self.n_hypotheses) * self.stderr
        return self.value - half, self.value + half

    @property
    def p_value(self) -> float:
        """Two-sided, for the hypothesis that the true value is zero; NaN where nothing can be said of it.

        That is where the standard error is unknown, and where it is zero though the value is not: what never varied
        in the data gives no scale to judge it by.
        """
        if self.stderr == 0 and self.value == 0:
            return 1.0
        if self.stderr == 0 or math.isinf(self.stderr):
            return math.nan
        size = abs(self.value) / self.stderr
        low, high = math.log(1e-300), math.log(0.5)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.critical(math.exp(middle)) < size else (middle, high)
        return min(1.0, 2 * math.exp(high) * self.n_hypotheses)

    def critical(self, tail: float) -> float:
        """The weighted mean of the sources' critical values."""
        return float(sum(weight * -scipy.special.stdtrit(degrees, tail) for weight, degrees in self.sources))


def estimate(replicates: Float[ndarray, " R"], design: Design) -> Estimate:
    """A value's estimate, from a statistic of every replicate, by the variance between its own seeds.

    Between 93% and 97% of its 95% intervals cover; further out in the tails its weights were not fitted.
    """
    (found,) = estimates(replicates[None], design)
    return found


def estimates(replicates: Float[ndarray, "P R"], design: Design) -> list[Estimate]:
    """`estimate` of many values."""
    of_seeds = [(seed_variance(of, design), design.n_seeds - 1.0) for of in replicates]
    return _combined(replicates, design, of_seeds, lambda share, degrees: _weight_of_seeds(share), 1)


def difference(of_pair: Float[ndarray, " R"], design: Design, seeds: float, degrees: float, family: int) -> Estimate:
    """The estimate of a difference, one of a family of that size, with a variance between seeds from elsewhere.

    Where no variance was seen at all, it is unknown: SAEs that agree by chance would differ beyond any doubt otherwise.
    """
    (found,) = differences(of_pair[None], design, [(seeds, degrees)], family)
    return found


def differences(
    of_pairs: Float[ndarray, "P R"], design: Design, seeds: Sequence[tuple[float, float]], family: int
) -> list[Estimate]:
    """`difference` of many pairs, with the variance between seeds and its degrees of freedom of each."""
    found = _combined(of_pairs, design, seeds, _weight_of_pooled, family)
    return [one if one.stderr > 0 else replace(one, stderr=math.inf) for one in found]


def _combined(
    replicates: Float[ndarray, "P R"],
    design: Design,
    seeds: Sequence[tuple[float, float]],
    weigh: Callable[[float, float], float],
    family: int,
) -> list[Estimate]:
    """Both sources of each value together; one that contributes nothing has no weight."""
    values, over = replicates[:, 0].tolist(), design.n_seeds > 1
    if design.n_documents < MIN_DOCUMENTS:
        return [Estimate(value, math.inf, ((1.0, 1.0),), over, family) for value in values]
    documents = document_variances(replicates, design)
    return [
        _of_sources(value, of_documents, of_seeds, weigh, over, family)
        for value, of_documents, of_seeds in zip(values, documents, seeds, strict=True)
    ]


def _of_sources(
    value: float,
    documents: tuple[float, float],
    seeds: tuple[float, float],
    weigh: Callable[[float, float], float],
    over_seeds: bool,
    family: int,
) -> Estimate:
    """An estimate from the variance of each source and its degrees of freedom."""
    total = documents[0] + seeds[0]
    weight = weigh(seeds[0] / total, seeds[1]) if seeds[0] > 0 else 0.0
    sources = ((1 - weight, documents[1]), (weight, seeds[1])) if weight else ((1.0, documents[1]),)
    return Estimate(value, total**0.5, sources, over_seeds, family)


def smallest_difference(documents: tuple[float, float], seeds: tuple[float, float], family: int) -> float:
    """The difference that such an experiment tells from zero four times in five, one of a family of that size.

    Both sources as in `difference`: the variance that each gives a difference, and its degrees of freedom.
    """
    found = _of_sources(0.0, documents, seeds, _weight_of_pooled, True, family)
    return found.stderr * (found.critical((1 - LEVEL) / 2 / family) + found.critical(1 - POWER))


def seed_variance(replicates: Float[ndarray, " R"], design: Design) -> float:
    """The variance of a mean over seeds that comes from their choice; 0 with one seed, which says nothing of it."""
    if design.n_seeds < 2:
        return 0.0
    return float(np.var(replicates[design.seeds]) * (design.n_seeds - 1))


def document_variance(replicates: Float[ndarray, " R"], design: Design) -> tuple[float, float]:
    """The variance that comes from the choice of documents, or of units of other text, and its degrees of freedom.

    The variance of G documents of kurtosis k has 2 G / (k - 1) of them by its first two moments. But a sample shows
    too small a kurtosis where tails are heavy, and skewness makes a value and its standard error depend on each other:
    half as many degrees let intervals cover on real per-document sums.
    """
    (found,) = document_variances(replicates[None], design)
    return found


def document_variances(replicates: Float[ndarray, "P R"], design: Design) -> list[tuple[float, float]]:
    """`document_variance` of many values."""
    by_source = [_left_out(replicates[:, design.documents])]
    if design.n_units > 1:
        by_source.append(_left_out(replicates[:, design.units]))
    moved = np.square(replicates[:, design.moved] - replicates[:, :1]).sum(1)
    by_source.append([(variance, design.n_documents - 1.0) for variance in moved.tolist()])
    return [_together(sources) for sources in zip(*by_source, strict=True)]


def _together(sources: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sum of some variances, and the degrees of freedom of it."""
    sources = [source for source in sources if source[0] > 0] or sources[:1]
    total = sum(variance for variance, _ in sources)
    if len(sources) == 1:
        return sources[0]
    return total, total**2 / sum(variance**2 / degrees for variance, degrees in sources)


def _left_out(replicates: Float[ndarray, "P n"]) -> list[tuple[float, float]]:
    """The variance that comes from the choice of n things, from a statistic without each, and its degrees."""
    n = replicates.shape[1]
    left_out = replicates - replicates.mean(1, keepdims=True)
    squares, fourths = np.square(left_out).mean(1).tolist(), (left_out**4).mean(1).tolist()
    found = []
    for square, fourth in zip(squares, fourths, strict=True):
        degrees = n - 1.0
        if square > 0:
            degrees = min(max(n / max(fourth / square**2 - 1, 1e-9), MIN_DEGREES), degrees)
        found.append((square * (n - 1), degrees))
    return found


def _weight_of_seeds(share: float) -> float:
    """The weight of the seeds' critical value, where a value's own seeds have this share of the estimated variance.

    With one degree of freedom no function of the share gives exactly 95% whatever the true shares are (Linnik, 1968).
    This one, fitted to two seeds by integration, covers 93.1% to 96.9% with two and 94.9% to 96.5% with three.
    """
    bent: float = share**1.5  # between 0 and 1
    return 1.5 * bent / (1 + 0.5 * bent)


def _weight_of_pooled(share: float, degrees: float) -> float:
    """The weight of the seeds' critical value in a difference, where corrected p-values come from far in the tails.

    Cochran's weight is the share itself; with few degrees of freedom it lets too much through there (two degrees, one
    hypothesis of 30: up to 1.9 times what it says). With this one no tail holds more than it says.
    """
    weight: float = share ** (1 - 1 / (2 * degrees))
    return weight
