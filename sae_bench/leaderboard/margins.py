"""How much better than the best control: the margin of a value, paired with that control's by document and by seed.

Controls say what a metric gives to what has learned nothing, or less. The best one is chosen metric by metric, by the
metric's direction, among those of the same model, site, width and wanted L0; one that in a metric is an architecture
of the board itself, as `permuted` is topk where the decoder is not looked at, lacks nothing there and is none of them.
It is chosen on the numbers that it is then compared with, which favours it: a margin is rather too small than large.
Positive is better, always; its interval is that of this margin alone.

Shapes: R replicates.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sae_bench.leaderboard import bootstrap
from sae_bench.leaderboard.bootstrap import Design, Estimate
from sae_bench.leaderboard.compare import Comparison, comparisons, pooled_over_seeds
from sae_bench.leaderboard.setting import Setting
from sae_bench.records.schema import Record

PREFIX = "margin:"
"""What stands before a metric's name where its margin is meant: `--columns fve margin:fve`."""

Values = Mapping[str, Float[ndarray, " R"]]
"""By label, a metric at one target or L0 in every replicate."""


@dataclass(frozen=True)
class Margin:
    """A value minus that of the best control, or the other way round where smaller is better."""

    over: str
    """The control's label."""
    estimate: Estimate


def over_best(values: Values, controls: Collection[str], direction: str | None, design: Design) -> dict[str, Margin]:
    """The margin of every architecture over the best control; none without controls, or without a direction."""
    sign = {"up": 1, "down": -1, None: 0}[direction]
    others = [of for label, of in values.items() if label not in controls]
    present = [label for label, of in values.items() if label in controls and not any(_same(of, o) for o in others)]
    if not sign or not present:
        return {}
    best = max(present, key=lambda label: sign * float(values[label][0]))
    compared = {label: of for label, of in values.items() if label == best or label not in controls}
    between_seeds = {label: bootstrap.seed_variance(of, design) for label, of in compared.items()}
    labels = [label for label in compared if label != best]
    of_seeds = [pooled_over_seeds(between_seeds, {label: 1.0, best: -1.0}, design) for label in labels]
    of_pairs = np.array([sign * (compared[label] - values[best]) for label in labels]).reshape(-1, design.n_replicates)
    found = bootstrap.differences(of_pairs, design, of_seeds, 1)
    return {label: Margin(best, one) for label, one in zip(labels, found, strict=True)}


def _same(one: Float[ndarray, " R"], other: Float[ndarray, " R"]) -> bool:
    """Whether both are made of the same numbers, document by document and seed by seed.

    Numbers that are alike everywhere, as shares of 0, may be so by chance: they are not called the same. Nor is what
    has no numbers by document or unit, but an error alone.
    """
    return bool(np.array_equal(one, other) and np.ptp(one) > 0)


def at_targets(comparison: Comparison, metric: str) -> dict[float, dict[str, Margin]]:
    """The margins over the best control at every target."""
    by_target: dict[float, dict[str, Float[ndarray, " R"]]] = {}
    for label, of in comparison.points(metric).items():
        for i, target in enumerate(of.targets):
            by_target.setdefault(target, {})[label] = of.value[:, i]
    direction, controls = comparison.directions.get(metric), controls_of(comparison)
    return {target: over_best(of, controls, direction, comparison.design) for target, of in by_target.items()}


def controls_of(comparison: Comparison) -> list[str]:
    """The labels of its controls."""
    return [one.label for one in comparison.architectures if one.control]


class Margins:
    """All margins of a metric, by setting, label, target, and seed (None: of the means over seeds)."""

    def __init__(self, found: Mapping[tuple[Setting, float, int | None], Mapping[str, Margin]]) -> None:
        self._found = found

    @staticmethod
    def of(records: Sequence[Record], metric: str, *, over_seeds: bool = False) -> "Margins":
        """Those of each seed, or of the means over seeds."""
        return Margins.of_each(records, [metric], over_seeds=over_seeds)[metric]

    @staticmethod
    def of_each(
        records: Sequence[Record], metrics: Collection[str], *, over_seeds: bool = False
    ) -> "dict[str, Margins]":
        """Those of some metrics, by metric."""
        found: dict[str, dict[tuple[Setting, float, int | None], Mapping[str, Margin]]] = {of: {} for of in metrics}
        own = [record for record in records if not record.sae.origin]
        groups: dict[int | None, list[Record]] = {}
        if metrics and any(record.sae.control for record in own):
            for record in own:
                groups.setdefault(None if over_seeds else record.sae.seed, []).append(record)
        for seed, mine in groups.items():
            for comparison, metric in product(comparisons(mine, [*metrics], controls=True), metrics):
                for target, of in at_targets(comparison, metric).items():
                    found[metric][comparison.setting, target, seed] = of
        return {metric: Margins(of) for metric, of in found.items()}

    def get(self, setting: Setting, label: str, target: float, seed: int | None) -> Margin | None:
        """One margin, if there is one."""
        return self._found.get((setting, target, seed), {}).get(label)

    def cell(
        self, setting: Setting, label: str, target: float, seed: int | None, shown: Callable[[Estimate], str]
    ) -> str:
        """A margin as a table shows it; of a control, whether it is the best one."""
        of = self._found.get((setting, target, seed), {})
        if label in of:
            return shown(of[label].estimate)
        return "best" if label in {margin.over for margin in of.values()} else "-"
