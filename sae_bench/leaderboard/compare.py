"""Which architecture is better: every metric at matched L0, with intervals, and every pair tested.

Records -> one `Comparison` for each model, site and width -> standings at stated L0s and by area under the curve.
Nothing is averaged over unlike things: not over metrics, sites, widths or models.

All pairs at all L0s and by area are one family: that any of a table's differences is false has a probability of at
most 5%, and its intervals cover together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sae_bench.errors import UserError
from sae_bench.leaderboard import bootstrap, replicates
from sae_bench.leaderboard.bootstrap import Design, Estimate
from sae_bench.leaderboard.curves import area, at_l0, common_range, measured_range
from sae_bench.leaderboard.load import metrics_of
from sae_bench.leaderboard.matched import AT_L0
from sae_bench.leaderboard.setting import Setting
from sae_bench.records.schema import Record

ALPHA = 0.05
"""Two architectures are told apart if the corrected p-value of their difference is at most this."""


@dataclass(frozen=True)
class Points:
    """A metric of one architecture at each target, mean over seeds, with the L0s at which it was measured."""

    targets: tuple[float, ...]
    l0: Float[ndarray, "R T"]
    value: Float[ndarray, "R T"]


@dataclass(frozen=True)
class Architecture:
    """One architecture in a setting: what was measured of it, metric by metric; "l0" is one of them."""

    label: str
    metrics: dict[str, Points]
    """Those that every seed has at one target at least."""
    missing: tuple[str, ...]
    """SAEs that have no value, and why."""
    control: bool = False


@dataclass(frozen=True)
class Comparison:
    """All architectures of a setting, on the same seeds and documents."""

    setting: Setting
    design: Design
    seeds: tuple[int, ...]
    architectures: tuple[Architecture, ...]
    records: tuple[Record, ...]
    """Those that it is made of."""
    directions: dict[str, str | None]
    """Which way each metric is better: "up", "down" or None."""

    def points(self, metric: str) -> dict[str, Points]:
        """What was measured of a metric, by the label of each architecture that has it."""
        return {one.label: one.metrics[metric] for one in self.architectures if metric in one.metrics}

    def heights(self, metric: str, l0s: Sequence[float]) -> dict[float | None, dict[str, Float[ndarray, " R"]]]:
        """By L0 a metric of each architecture that was measured on both sides of it, in every replicate."""
        found: dict[float | None, dict[str, Float[ndarray, " R"]]] = {l0: {} for l0 in l0s}
        for label, points in self.points(metric).items():
            low, high = measured_range(points.l0[0])
            for l0, values in zip(l0s, at_l0(points.l0, points.value, l0s).T, strict=True):
                if low <= l0 <= high:
                    found[l0][label] = values
        return found


@dataclass(frozen=True)
class Standing:
    """An architecture's metric at an L0 (None: area under the curve)."""

    label: str
    estimate: Estimate | None
    """None where the L0 is outside of what was measured."""
    best: bool
    """Not told apart from the best, where others are."""


@dataclass(frozen=True)
class Difference:
    """One architecture's metric minus another's at an L0 (None: by area), as one of the family of all pairs and L0s."""

    label: str
    other: str
    l0: float | None
    estimate: Estimate

    @property
    def tie(self) -> bool:
        """Zero is inside of the interval: the p-value is above ALPHA, or unknown."""
        low, high = self.estimate.interval(1 - ALPHA)
        return low <= 0 <= high


@dataclass(frozen=True)
class MetricComparison:
    """All that a table of one metric says."""

    standings: dict[float | None, list[Standing]]
    """By L0; None: by area."""
    differences: list[Difference]
    between: tuple[float, float] | None
    """The L0s of the area: those that all architectures cover."""


def check_metrics(records: Sequence[Record], wanted: Sequence[str] | None) -> list[str]:
    """The metrics to compare: those asked for, else the headline ones that have a better direction.

    Those of what was not measured are left out: a table of nothing but "no judge" would compare nothing.

    Raises:
        UserError: one of them is in no record.
    """
    known = metrics_of(records, wanted or ())
    shown = {name for record in records if record.measured_on == "tokens" for name in record.metrics}
    shown |= {name for record in records if not record.not_measured for name in record.scores}
    headline = (name for name, metric in known.items() if metric.headline and metric.better)
    return list(wanted or (name for name in headline if name in shown))


def comparisons(records: Sequence[Record], metrics: Sequence[str], *, controls: bool = False) -> list[Comparison]:
    """Sort records into comparisons.

    Only seeds that every architecture has are compared, so that seeds are paired. SAEs from elsewhere stay out: what
    they were trained on is not what the others were trained on. Controls come last if they are asked for, those that
    have these seeds.

    Raises:
        UserError: the architectures of a setting have no seed in common.
    """
    settings: dict[Setting, list[Record]] = {}
    for record in records:
        if not record.sae.origin and (controls or not record.sae.control):
            settings.setdefault(Setting.of(record), []).append(record)
    found = (_comparison_of(setting, settings[setting], metrics) for setting in sorted(settings))
    return [comparison for comparison in found if comparison.architectures]


def _comparison_of(setting: Setting, records: Sequence[Record], metrics: Sequence[str]) -> Comparison:
    controls = {record.sae.label for record in records if record.sae.control}
    by_label = {record.sae.label: set[int]() for record in records}
    for record in records:
        by_label[record.sae.label].add(_place(record)[1])
    compared = {label: seeds for label, seeds in by_label.items() if label not in controls} or by_label
    seeds = sorted(set.intersection(*compared.values()))
    if not seeds:
        have = "; ".join(f"{label}: {', '.join(map(str, sorted(of)))}" for label, of in sorted(compared.items()))
        raise UserError(f"the architectures at {setting.site} share no seed ({have}): give runs of the same seeds")
    labels = sorted(compared) + sorted(label for label in controls - {*compared} if by_label[label] >= {*seeds})
    design = Design.of(records, len(seeds), len(labels))
    wanted = list(dict.fromkeys([*metrics, "l0"]))
    directions: dict[str, str | None] = {
        name: metric.better for name, metric in metrics_of(records).items() if name in wanted
    }
    found = [_architecture(label, i, records, seeds, wanted, design) for i, label in enumerate(labels)]
    architectures = tuple(replace(one, control=one.label in controls) for one in found if one.metrics)
    mine = tuple(record for record in records if record.sae.seed in seeds)
    return Comparison(setting, design, tuple(seeds), architectures, mine, directions)


def _architecture(
    label: str, place: int, records: Sequence[Record], seeds: Sequence[int], metrics: Sequence[str], design: Design
) -> Architecture:
    """For each metric, the targets at which every seed has it and the L0; what is missing says why."""
    measured: dict[tuple[str, float, int], Float[ndarray, " R"]] = {}
    missing: list[str] = []
    mine = [record for record in records if record.sae.label == label and record.sae.seed in seeds]
    for record in sorted(mine, key=lambda record: (*_place(record), record.task)):
        if record.failure:
            missing.append(f"{record.sae.id}: {record.failure}")
        for name in sorted(set(record.scores) & set(metrics)):
            key = (name, *_place(record))
            if key in measured:
                raise UserError(
                    f"{record.sae.id} is in two of the runs: give runs that differ in architecture, target or seed"
                )
            try:
                measured[key] = replicates.metric_replicates(record, name, design, place)
            except KeyError:
                note = record.scores[name].note or "no value, or no standard error"
                missing.append(f"{record.sae.id}: {name}: {note}")
    targets = sorted({target for _, target, _ in measured})
    means = {
        (name, target): replicates.over_seeds([measured[name, target, seed] for seed in seeds], design)
        for name in metrics
        for target in targets
        if all((name, target, seed) in measured for seed in seeds)
    }
    points = {}
    for name in metrics:
        if kept := [target for target in targets if (name, target) in means and ("l0", target) in means]:
            l0, value = (np.stack([means[of, target] for target in kept], axis=1) for of in ("l0", name))
            points[name] = Points(tuple(kept), l0, value)
    return Architecture(label, points, tuple(dict.fromkeys(missing)))


def _place(record: Record) -> tuple[float, int]:
    """The target and the seed of an SAE of a run."""
    target, seed = record.sae.target, record.sae.seed
    assert target is not None and seed is not None, "only SAEs from elsewhere have none"  # noqa: PT018
    return target, seed


def compare(comparison: Comparison, metric: str, l0s: Sequence[float] = AT_L0) -> MetricComparison:
    """Every architecture at every wanted L0 inside its measured range and by area, and all pairs' differences there."""
    points = comparison.points(metric)
    places = comparison.heights(metric, l0s)
    between = common_range([of.l0[0] for of in points.values()]) if points else None
    if between is not None:
        places[None] = {label: area(of.l0, of.value, between) for label, of in points.items()}
    differences = _differences(places, comparison)
    standings = {
        place: _standings(comparison, metric, of, [d for d in differences if d.l0 == place])
        for place, of in places.items()
    }
    return MetricComparison(standings, differences, between)


def _differences(places: Mapping[Any, Mapping[str, Float[ndarray, " R"]]], comparison: Comparison) -> list[Difference]:
    """All pairs at all places, as one family.

    Two or three seeds hardly show how much an architecture varies between them, so the variance is taken over all
    architectures at a place, unless the two themselves show a larger one. A control counts in its own differences
    alone: that it hardly varies says nothing of others. Seeds are not paired (docs/comparing.md).
    """
    design, controls = comparison.design, {one.label for one in comparison.architectures if one.control}
    family = sum(math.comb(len(of), 2) for of in places.values())
    found = []
    for place, of in places.items():
        pairs = [*combinations(of, 2)]
        between_seeds = {label: bootstrap.seed_variance(values, design) for label, values in of.items()}
        pools = [{one: v for one, v in between_seeds.items() if one not in controls - {*pair}} for pair in pairs]
        of_seeds = [
            pooled_over_seeds(pool, dict(zip(pair, (1.0, -1.0), strict=True)), design)
            for pair, pool in zip(pairs, pools, strict=True)
        ]
        of_pairs = np.array([of[label] - of[other] for label, other in pairs]).reshape(-1, design.n_replicates)
        estimates = bootstrap.differences(of_pairs, design, of_seeds, family)
        found += [Difference(*pair, place, one) for pair, one in zip(pairs, estimates, strict=True)]
    return found


def pooled_over_seeds(
    between_seeds: Mapping[str, float], coefficients: Mapping[str, float], design: Design
) -> tuple[float, float]:
    """The variance between seeds of a sum of architectures' values, each times its coefficient, and its degrees.

    It is that of all architectures in the mean, unless those of the sum themselves show a larger one.
    """
    squares = {label: coefficient**2 for label, coefficient in coefficients.items()}
    of_all = sum(squares.values()) * sum(between_seeds.values()) / len(between_seeds)
    own = sum(square * between_seeds[label] for label, square in squares.items())
    return max(of_all, own), len(between_seeds) * (design.n_seeds - 1.0)


def _standings(
    comparison: Comparison, metric: str, values: Mapping[str, Float[ndarray, " R"]], differences: Sequence[Difference]
) -> list[Standing]:
    found = bootstrap.estimates(np.array([*values.values()]), comparison.design) if values else []
    estimates = dict(zip(values, found, strict=True))
    best = _not_told_apart(estimates, comparison.directions.get(metric), differences)
    return [Standing(one.label, estimates.get(one.label), one.label in best) for one in comparison.architectures]


def _not_told_apart(
    estimates: Mapping[str, Estimate], direction: str | None, differences: Sequence[Difference]
) -> set[str]:
    """Who is not told apart from the best; nobody, where that would be everybody.

    Differences have standard errors of their own, so a worse architecture may be tied with the best and a better one
    not. Then the better one is not taken to be told apart either: who is left out is worse than all who are in.
    """
    if direction is None or not estimates:
        return set()
    ranked = sorted(estimates, key=lambda label: estimates[label].value, reverse=direction == "up")
    tied = {label for d in differences if ranked[0] in (d.label, d.other) and d.tie for label in (d.label, d.other)}
    last = max(i for i, label in enumerate(ranked) if i == 0 or label in tied)
    return set(ranked[: last + 1]) if last + 1 < len(ranked) else set()
