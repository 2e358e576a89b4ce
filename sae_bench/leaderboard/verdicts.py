"""Whether a claim about numbers holds, by their intervals alone: all lie where they should, or one where it must not.

A claim says that some numbers - one at each L0, say - all lie in a range. It **holds** if every 95% interval lies
inside the range: that is an intersection-union test, which needs no correction (Berger, 1982). It **does not hold** if
one interval lies wholly outside, and any of K numbers may do so by chance: their level is 1 - .05 / K (Bonferroni). So
with the truth at a limit of the range either is said falsely at most 2.5% of the time. Else it cannot be told.

What is judged is what is printed: ends are rounded first. A number without a known uncertainty tells nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from sae_bench.errors import one_line
from sae_bench.leaderboard.bootstrap import LEVEL, Estimate, difference, seed_variance
from sae_bench.leaderboard.compare import Comparison, pooled_over_seeds

Verdict = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True)
class JudgedClaim:
    """A claim's verdict in one setting, and the numbers behind it, or what is missing."""

    claim: str
    verdict: Verdict
    numbers: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    """What it was judged by, where it was."""

    def __post_init__(self) -> None:
        # Labels come from whoever named an architecture: none breaks a line or turns the writing around.
        object.__setattr__(self, "numbers", tuple(map(one_line, self.numbers)))


Check = Callable[[Comparison, Sequence[float]], JudgedClaim]


@runtime_checkable
class Uncertain(Protocol):
    """A number with intervals."""

    @property
    def value(self) -> float: ...

    def interval(self, level: float) -> tuple[float, float]: ...


def judged(
    claim: str, found: Sequence[tuple[str, Uncertain]], low: float, high: float, notes: Sequence[str] = ()
) -> JudgedClaim:
    """The verdict on a claim that all of some named numbers lie between two limits, either of which may be infinite."""
    if not found:
        return JudgedClaim(claim, "cannot tell", tuple(notes))
    levels = LEVEL, 1 - (1 - LEVEL) / len(found)
    each, family = ([rounded(number.interval(level)) for _, number in found] for level in levels)
    verdict: Verdict = "cannot tell"
    if any(below > high or above < low for below, above in family):
        verdict = "does not hold"
    elif all(low <= below and above <= high for below, above in each):
        verdict = "holds"
    numbers = [
        line(name, number.value, dict(zip(levels, intervals, strict=True)))
        for (name, number), *intervals in zip(found, each, family, strict=True)
    ]
    return JudgedClaim(claim, verdict, (_rule(low, high, len(found), levels[1]), *numbers, *notes))


def rounded(interval: tuple[float, float]) -> tuple[float, float]:
    """The ends of an interval as they are printed, and so as they are judged."""
    below, above = (float(f"{end:.4g}") for end in interval)
    return below, above


def line(name: str, value: float, intervals: Mapping[float, tuple[float, float]]) -> str:
    """A number with its intervals, by level: of one number alone, both are the same."""
    shown = [f"{100 * level:.4g}% [{below:.4g}, {above:.4g}]" for level, (below, above) in intervals.items()]
    known = math.isfinite(intervals[LEVEL][0])
    return f"{name} = {value:.4g}, {', '.join(shown) if known else 'its uncertainty is unknown'}"


def _rule(low: float, high: float, n: int, level: float) -> str:
    """What is wanted of every number, and which intervals decide."""
    wanted = f"from {low:.4g} to {high:.4g}"
    if math.isinf(low):
        wanted = f"at most {high:.4g}"
    elif math.isinf(high):
        wanted = f"at least {low:.4g}"
    of_all = "" if n == 1 else f" (95% for {n} together)"
    return (
        f"wanted: {wanted}; holds if every 95% interval is inside, does not hold if one {100 * level:.4g}% interval"
        f"{of_all} is outside"
    )


def contrast(comparison: Comparison, metric: str, l0: float, coefficients: Mapping[str, float]) -> Estimate | None:
    """A sum of architectures' metrics at one L0, each times its coefficient, taken replicate by replicate.

    None where an architecture lacks the metric, or the L0 is outside of what was measured of it. What is the same in
    every replicate, as a share whose jackknife is 0, is no more certain for that: its uncertainty is unknown, and so is
    that of a sum with it.
    """
    heights = comparison.heights(metric, [l0])[l0]
    if not set(coefficients) <= set(heights):
        return None
    terms = [coefficient * heights[label] for label, coefficient in coefficients.items()]
    total = np.sum(terms, axis=0)
    # What is said of one architecture takes its own seeds alone; its tails have to hold as a difference's do. A control
    # counts where it is compared, and nowhere else.
    others = {one.label for one in comparison.architectures if one.control} - {*coefficients}
    compared = [label for label in heights if label not in others] if len(terms) > 1 else [*coefficients]
    between_seeds = {label: seed_variance(heights[label], comparison.design) for label in compared}
    seeds, degrees = pooled_over_seeds(between_seeds, coefficients, comparison.design)
    found = difference(total, comparison.design, seeds, degrees, 1)
    rounding = 1e-12 * max(abs(term[0]) for term in terms)
    varies = all(np.ptp(of) > rounding for of in (*terms, total))
    return found if varies else replace(found, stderr=math.inf)


def not_worse(
    metric: str, better: Literal["up", "down"], arch: str, than: str, claim: str, *, about: float = 0.0
) -> Check:
    """`arch` is at least as good as `than` at every L0, or worse by a share of at most `about` of the other's value.

    The other's value is uncertain as well, so what is judged is arch - (1 + about) than.
    """
    factor, low, high = (1 + about, -math.inf, 0.0) if better == "down" else (1 - about, 0.0, math.inf)
    return all_within([metric], [{arch: 1.0, than: -factor}], low, high, claim)


def within(metric: str, arch: str, low: float, high: float, claim: str, *, least_width: int = 0) -> Check:
    """The metric is in a range at every L0; a dictionary narrower than `least_width` is not asked."""
    return all_within([metric], [{arch: 1.0}], low, high, claim, least_width)


def about_equal(metrics: Sequence[str], archs: Sequence[str], room: float, claim: str) -> Check:
    """No two of the architectures differ in any of the metrics by more than `room` at any L0."""
    return all_within(metrics, [{one: 1.0, other: -1.0} for one, other in combinations(archs, 2)], -room, room, claim)


def where_it_tells(
    chance: Mapping[str, float], archs: Sequence[str], room: float, check: Callable[[Sequence[str]], Check]
) -> Check:
    """A check of those metrics alone in which one of the architectures is told to be above chance by more than `room`.

    Who judges by chance finds all alike: of such scores no likeness says anything. `chance`: what it has in each
    metric; `check`: makes a check of some of them.
    """

    def checked(comparison: Comparison, l0s: Sequence[float]) -> JudgedClaim:
        labels = [_name(comparison, arch) for arch in archs]

        def tells(metric: str) -> bool:
            heights = (contrast(comparison, metric, l0, {label: 1.0}) for label in labels for l0 in l0s)
            return any(height.interval(LEVEL)[0] > chance[metric] + room for height in heights if height is not None)

        told = [metric for metric in chance if tells(metric)]
        found = check(told or [*chance])(comparison, l0s)
        if told or found.verdict == "cannot tell":
            return found
        names = ", ".join(found.metrics)
        note = f"no score of {', '.join(labels)} is told to be above chance by more than {room:g} ({names})"
        return replace(found, verdict="cannot tell", numbers=(note,), metrics=())

    return checked


def all_within(
    metrics: Sequence[str],
    sums: Sequence[Mapping[str, float]],
    low: float,
    high: float,
    claim: str,
    least_width: int = 0,
) -> Check:
    """Every sum, of architectures' metrics times a coefficient, is in a range at every L0."""

    def check(comparison: Comparison, l0s: Sequence[float]) -> JudgedClaim:
        if (width := comparison.setting.width) < least_width:
            only = f"only dictionaries of {least_width:,} or more can tell"
            return JudgedClaim(claim, "cannot tell", (f"one latent of {width:,} is {1 / width:.2%}: {only}",))
        named = [{_name(comparison, arch): factor for arch, factor in of.items()} for of in sums]
        found = [
            (f"L0 {l0:g}: {metric} of {' - '.join(_times(-factor, label) for label, factor in of.items())}", number)
            for metric in metrics
            for of in named
            for l0 in l0s
            if (number := contrast(comparison, metric, l0, of)) is not None
        ]
        notes = notes_on(comparison, metrics, list(dict.fromkeys(chain(*named))), l0s, found)
        return replace(judged(claim, found, low, high, notes), metrics=tuple(metrics) if found else ())

    return check


def _times(factor: float, label: str) -> str:
    return label if abs(factor) == 1 else f"{factor:g} {label}"


def _name(comparison: Comparison, arch: str) -> str:
    """The label of an architecture in a comparison: its name, or with settings, if one choice of them is there."""
    labels = {record.sae.label for record in comparison.records if record.sae.arch == arch}
    return labels.pop() if len(labels) == 1 else arch


def notes_on(
    comparison: Comparison, metrics: Sequence[str], labels: Sequence[str], l0s: Sequence[float], found: Sequence[object]
) -> list[str]:
    """What the numbers do not cover, or why there are none."""
    if found:
        return ["one seed: the intervals cover the choice of documents alone"] if len(comparison.seeds) == 1 else []
    architectures = {architecture.label: architecture for architecture in comparison.architectures}
    absent = [label for label in labels if label not in architectures]
    if absent:
        return [f"no {', no '.join(absent)} among {', '.join(architectures) or 'none'}"]
    known = {name for record in comparison.records for name in record.metrics}
    notes = []
    for metric in metrics:
        without = [label for label in labels if metric not in architectures[label].metrics]
        if metric not in known:
            versions = sorted({f"{record.task} {record.task_version}" for record in comparison.records})
            notes.append(f"{metric} is in no record: not measured by what made them ({', '.join(versions)})")
        elif without:
            notes.append(f"no {metric} of {', '.join(without)}")
        else:
            notes.append(f"{metric}: none of L0 {', '.join(f'{l0:g}' for l0 in l0s)} lies in the range of all")
    return notes
