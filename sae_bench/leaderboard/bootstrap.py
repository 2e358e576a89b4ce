"""How sure a number is: a jackknife over seeds and documents, from the records' per-document sums.

Two things would come out otherwise in another experiment: the seeds of the SAEs and the documents they were evaluated
on. All SAEs saw the same documents, so the two are crossed, not nested: each document is left out once, for all SAEs
alike, which pairs every comparison, and each seed is left out once (Efron and Stein, 1981). The two variances add up.

No quantile of Student's distribution fits such a sum exactly. Here the critical value is a weighted mean of the
sources' own, as Cochran's is (1964). Its weights, and how many degrees of freedom heavy-tailed documents leave, were
chosen by integration and by simulation: `docs/comparing.md` has what they reach, `benchmarks/comparisons.py` makes it.

Shapes: R replicates, G documents, S seeds.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import special

from sae_bench.records.schema import ON_TEXTS, Record

LEVEL = 0.95

POWER = 0.8
"""How often a difference is to be told that is called tellable."""

MIN_DOCUMENTS = 30
"""With fewer, an interval does not cover what it says, and none is given (docs/comparing.md has the simulation)."""

MIN_DEGREES = 8.0
"""The fewest degrees of freedom that documents are taken to leave, however few of them carry the variance."""

FORMULA = re.compile(r"(1 - )?(\w+) / (\w+)")


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

    @property
    def documents(self) -> slice:
        return slice(1, 1 + self.n_documents if self.n_documents > 1 else 1)

    @property
    def moved(self) -> slice:
        return slice(self.documents.stop, self.documents.stop + self.n_architectures)

    @property
    def seeds(self) -> slice:
        return slice(self.moved.stop, self.moved.stop + (self.n_seeds if self.n_seeds > 1 else 0))

    @property
    def units(self) -> slice:
        return slice(self.seeds.stop, self.seeds.stop + (self.n_units if self.n_units > 1 else 0))

    @property
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
        return float(sum(weight * -special.stdtrit(degrees, tail) for weight, degrees in self.sources))


def estimate(replicates: Float[ndarray, " R"], design: Design) -> Estimate:
    """A value's estimate, from a statistic of every replicate, by the variance between its own seeds.

    Between 93% and 97% of its 95% intervals cover; further out in the tails its weights were not fitted.
    """
    seeds = seed_variance(replicates, design)
    degrees = design.n_seeds - 1.0
    return _combined(replicates, design, seeds, degrees, _weight_of_seeds, 1)


def difference(of_pair: Float[ndarray, " R"], design: Design, seeds: float, degrees: float, family: int) -> Estimate:
    """The estimate of a difference, one of a family of that size, with a variance between seeds from elsewhere.

    Where no variance was seen at all, it is unknown: SAEs that agree by chance would differ beyond any doubt otherwise.
    """
    found = _combined(of_pair, design, seeds, degrees, lambda share: _weight_of_pooled(share, degrees), family)
    return found if found.stderr > 0 else replace(found, stderr=math.inf)


def _combined(
    replicates: Float[ndarray, " R"],
    design: Design,
    seeds: float,
    degrees: float,
    weigh: Callable[[float], float],
    family: int,
) -> Estimate:
    """Both sources together; one that contributes nothing has no weight."""
    value, over = float(replicates[0]), design.n_seeds > 1
    if design.n_documents < MIN_DOCUMENTS:
        return Estimate(value, math.inf, ((1.0, 1.0),), over, family)
    return _of_sources(value, document_variance(replicates, design), (seeds, degrees), weigh, over, family)


def _of_sources(
    value: float,
    documents: tuple[float, float],
    seeds: tuple[float, float],
    weigh: Callable[[float], float],
    over_seeds: bool,
    family: int,
) -> Estimate:
    """An estimate from the variance of each source and its degrees of freedom."""
    total = documents[0] + seeds[0]
    weight = weigh(seeds[0] / total) if seeds[0] > 0 else 0.0
    sources = ((1 - weight, documents[1]), (weight, seeds[1])) if weight else ((1.0, documents[1]),)
    return Estimate(value, total**0.5, sources, over_seeds, family)


def smallest_difference(documents: tuple[float, float], seeds: tuple[float, float], family: int) -> float:
    """The difference that such an experiment tells from zero four times in five, one of a family of that size.

    Both sources as in `difference`: the variance that each gives a difference, and its degrees of freedom.
    """
    found = _of_sources(0.0, documents, seeds, lambda share: _weight_of_pooled(share, seeds[1]), True, family)
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
    sources = [_left_out(replicates[design.documents])]
    if design.n_units > 1:
        sources.append(_left_out(replicates[design.units]))
    sources.append((float(np.square(replicates[design.moved] - replicates[0]).sum()), design.n_documents - 1.0))
    sources = [source for source in sources if source[0] > 0] or sources[:1]
    total = sum(variance for variance, _ in sources)
    if len(sources) == 1:
        return sources[0]
    return total, total**2 / sum(variance**2 / degrees for variance, degrees in sources)


def _left_out(replicates: Float[ndarray, " n"]) -> tuple[float, float]:
    """The variance that comes from the choice of n things, from a statistic without each, and its degrees."""
    n = len(replicates)
    left_out = replicates - replicates.mean()
    square = float(np.square(left_out).mean())
    variance, degrees = square * (n - 1), n - 1.0
    if square > 0:
        kurtosis = float(np.mean(left_out**4)) / square**2
        degrees = min(max(n / max(kurtosis - 1, 1e-9), MIN_DEGREES), degrees)
    return variance, degrees


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


def metric_replicates(record: Record, metric: str, design: Design, architecture: int = 0) -> Float[ndarray, " R"]:
    """A metric of one SAE in every replicate; leaving seeds out is `over_seeds`' part.

    Metrics that are ratios of sums per document, or per unit of a task's own text, are worked out anew. Of others, as
    the shares of latents or what a judge said of a sample of them, the record has a value and a standard error alone:
    all SAEs of an architecture are moved by theirs together, and each architecture by itself. That is the cautious
    reading of both: a mean over seeds gets no surer by it, and nothing cancels in a difference. Where the record says
    of how few degrees of freedom an error is, as of one from five raters, it counts as so much larger as makes its 95%
    interval as wide as it is by these.

    Raises:
        KeyError: the record has no value for the metric, or no standard error of it.
    """
    score = record.scores[metric]
    if score.value is None:
        raise KeyError(metric)
    formula = FORMULA.fullmatch(score.formula or "")
    if formula is None:
        if score.stderr is None:
            raise KeyError(metric)
        found = np.full(design.n_replicates, float(score.value))
        found[design.moved.start + architecture] += score.stderr * _widened(record, metric, design)
        return found
    one_minus, numerator, denominator = formula.groups()
    above, below = (np.asarray(record.by_document[name], dtype=float) for name in (numerator, denominator))
    found = np.full(design.n_replicates, above.sum() / below.sum())
    left_out = design.units if record.measured_on == ON_TEXTS else design.documents
    if left_out.stop > left_out.start:
        rows = slice(left_out.start, left_out.start + len(above))
        found[rows] = (above.sum() - above) / (below.sum() - below)
    return 1 - found if one_minus else found


def _widened(record: Record, metric: str, design: Design) -> float:
    """By how much a standard error of few degrees of freedom counts for more than one of as many as documents leave."""
    degrees = record.details.get("degrees", {}).get(metric)
    if degrees is None:
        return 1.0
    own, of_documents = (special.stdtrit(of, (1 + LEVEL) / 2) for of in (degrees, max(design.n_documents - 1.0, 1.0)))
    return max(1.0, float(own / of_documents))


def over_seeds(by_seed: Sequence[Float[ndarray, " R"]], design: Design) -> Float[ndarray, " R"]:
    """The mean over seeds, without the one that a replicate leaves out."""
    stacked = np.stack(by_seed, axis=1)
    found = stacked.mean(1)
    if design.n_seeds > 1:
        every = stacked[design.seeds]
        found[design.seeds] = (every.sum(1) - every.diagonal()) / (design.n_seeds - 1)
    return np.asarray(found)
