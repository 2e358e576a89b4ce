"""The answer of a board in sentences: which architecture is best by the primary metric, and what is not told apart.

Nothing is said that `compare` does not show: the order is that of the mean height over log L0, or, where architectures
share no range of L0, that at single L0s; "not told apart" is by the table's family of all pairs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sae_bench.errors import one_line
from sae_bench.leaderboard.bootstrap import MIN_DOCUMENTS
from sae_bench.leaderboard.compare import Comparison, MetricComparison, Standing, compare
from sae_bench.leaderboard.compare_table import with_interval
from sae_bench.records.names import true_name

BEST = {
    "delta_lm_loss": "adds the least loss to the language model",
    "f1": "finds the known features best",
    "fve": "explains the most variance",
}
"""What being best by a metric is called; of others it is "has the highest" or "has the lowest"."""


@dataclass(frozen=True)
class Verdict:
    """What is said of one setting (model, site, width): the sentence, what it rests on, what to know of it."""

    setting: str
    sentence: str
    numbers: str
    caveat: str
    first: str = ""
    """The label that the sentence begins with, where there is something to compare."""


def over_settings(found: Sequence[Verdict]) -> str:
    """Of several settings: in how many each architecture comes first. Nothing is averaged over them."""
    firsts = Counter(verdict.first for verdict in found if verdict.first)
    counts = [f"{label} in {n}" for label, n in sorted(firsts.items(), key=lambda item: (-item[1], item[0]))]
    return f"Of {len(found)} settings, each by itself, first is {_listed(counts)}." if counts else found[0].sentence


def verdicts(comparisons: Sequence[Comparison], metric: str, l0s: Sequence[float]) -> list[Verdict]:
    """One for each setting."""
    return [_verdict(comparison, metric, l0s) for comparison in comparisons]


def _verdict(comparison: Comparison, metric: str, l0s: Sequence[float]) -> Verdict:
    labels = list(comparison.points(metric))
    setting = one_line(str(replace(comparison.setting, model=true_name(comparison.setting.model))))
    if len(labels) < 2:
        only = f"Only {one_line(labels[0])} was measured" if labels else f"Nothing has a {metric} in every seed"
        caveat = _without(comparison, metric) or "Give --arch two names or more."
        return Verdict(setting, f"{only}: there is nothing to compare.", "", caveat)
    found = compare(comparison, metric, l0s)
    numbers = _numbers(found, comparison.directions.get(metric))
    if None in found.standings and found.between is not None:
        low, high = found.between
        where = f"over L0 {low:.3g} to {high:.3g}"
        of_area = found.standings[None]
        first = one_line(_ranked(of_area, comparison.directions.get(metric))[0].label)
        return Verdict(
            setting, _sentence(comparison, metric, of_area, where), numbers, _caveat(comparison, metric), first
        )
    places = {l0: of for l0, of in found.standings.items() if l0 is not None and len(_known(of)) > 1}
    if not places:
        said = "No two architectures were measured around one L0: nothing can be compared."
        return Verdict(setting, said, "", "Give --l0 several values, so that the measured L0s overlap.")
    said = " ".join(_sentence(comparison, metric, of, f"at L0 {l0:g}") for l0, of in places.items())
    return Verdict(setting, said, numbers, _caveat(comparison, metric))


def _known(standings: Sequence[Standing]) -> list[Standing]:
    return [one for one in standings if one.estimate]


def _ranked(standings: Sequence[Standing], direction: str | None) -> list[Standing]:
    sign = -1.0 if direction == "up" else 1.0
    return sorted(_known(standings), key=lambda one: (sign * one.estimate.value if one.estimate else 0.0, one.label))


def _sentence(comparison: Comparison, metric: str, standings: Sequence[Standing], where: str) -> str:
    direction = comparison.directions.get(metric)
    first, *others = _ranked(standings, direction)
    does = BEST.get(metric, f"has the {'highest' if direction == 'up' else 'lowest'} {one_line(metric)}")
    said = f"{one_line(first.label)} {does} {where}"
    if not first.best:
        return f"{said}, but no architecture is told apart from it."
    tied, worse = ([one_line(one.label) for one in others if one.best == best] for best in (True, False))
    if not tied:
        return f"{said}; every other is told apart from it: {_listed(worse)}."
    return f"{said}; {_listed(tied)} {_are(tied)} not told apart from it, {_listed(worse)} {_are(worse)} worse."


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _numbers(found: MetricComparison, direction: str | None) -> str:
    """The best three at every L0."""
    parts = []
    for l0, of in found.standings.items():
        if l0 is not None and len(_known(of)) > 1:
            best = [(one.label, one.estimate) for one in _ranked(of, direction)[:3] if one.estimate]
            shown = ", ".join(f"{one_line(label)} {with_interval(estimate)}" for label, estimate in best)
            parts.append(f"L0 {l0:g}: {shown}")
    return "; ".join(parts)


def _without(comparison: Comparison, metric: str) -> str:
    """Which architectures the sentence does not speak of, for they have no value in every seed."""
    there = comparison.points(metric)
    gone = sorted({one_line(record.sae.label) for record in comparison.records if record.sae.label not in there})
    has = "has" if len(gone) == 1 else "have"
    return f"{_listed(gone)} {has} no {one_line(metric)} in every seed: see what failed." if gone else ""


def _caveat(comparison: Comparison, metric: str) -> str:
    """What keeps the sentence from being the last word."""
    parts = [gone] if (gone := _without(comparison, metric)) else []
    if comparison.design.n_documents < MIN_DOCUMENTS:
        parts.append(
            f"{comparison.design.n_documents} documents are too few for intervals, so nothing is told apart: raise "
            "--eval-tokens."
        )
    if len(comparison.seeds) == 1:
        parts.append("With one seed nobody knows how much another would change: give --seed several.")
    return " ".join(parts)
