"""Which architecture is better: every metric at matched L0, with intervals, and every pair tested.

Records -> one `Panel` for each model, site and width -> comparisons at stated L0s and by area under the curve. Nothing
is averaged over unlike things: not over metrics, sites, widths or models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sae_bench.errors import UserError, did_you_mean
from sae_bench.leaderboard.bootstrap import (
    N_REPLICATES,
    Estimate,
    Weights,
    estimate,
    holm,
    metric_replicates,
    over_seeds,
)
from sae_bench.leaderboard.curves import AT_L0, area, at_l0, common_range, measured_range
from sae_bench.leaderboard.tables import judged_by, on_tokens

Record = Mapping[str, Any]

ALPHA = 0.05
"""A difference with a corrected p-value above this is a tie."""


@dataclass(frozen=True)
class Setting:
    """What must be alike for two SAEs to be compared."""

    model: str
    site: str
    width: int


@dataclass(frozen=True)
class Points:
    """A metric of one architecture at each target, mean over seeds, with the L0s at which it was measured."""

    targets: tuple[float, ...]
    l0: Float[ndarray, "R T"]
    value: Float[ndarray, "R T"]


@dataclass(frozen=True)
class Family:
    """One architecture in a setting: what was measured of it, metric by metric; "l0" is one of them."""

    label: str
    metrics: dict[str, Points]
    """Those that every seed has at one target at least."""
    missing: tuple[str, ...]
    """SAEs that have no value, and why."""


@dataclass(frozen=True)
class Panel:
    """All architectures of a setting, on the same seeds and documents."""

    setting: Setting
    weights: Weights
    seeds: tuple[int, ...]
    families: tuple[Family, ...]
    records: tuple[Record, ...]
    """Those that it is made of."""
    directions: dict[str, str | None]
    """Which way each metric is better: "up", "down" or None."""


@dataclass(frozen=True)
class Standing:
    """An architecture's metric at an L0 (None: area under the curve), and whether it is the best or tied with it."""

    label: str
    estimate: Estimate | None
    """None where the L0 is outside of what was measured."""
    best: bool


@dataclass(frozen=True)
class Difference:
    """One architecture's metric minus another's at an L0, with the p-value corrected for all pairs and L0s."""

    label: str
    other: str
    l0: float | None
    estimate: Estimate
    p_value: float

    @property
    def tie(self) -> bool:
        return self.p_value > ALPHA


def check_metrics(records: Sequence[Record], wanted: Sequence[str] | None) -> list[str]:
    """The metrics to compare: those asked for, else the headline ones that have a better direction.

    Those of a judge only where somebody judged: a table of nothing but "no judge" would compare nothing.

    Raises:
        UserError: one of them is in no record.
    """
    known = {name: metric for record in records for name, metric in record["metrics"].items()}
    for name in wanted or ():
        if name not in known:
            raise UserError(f'unknown metric "{name}"{did_you_mean(name, known)}')
    shown = {name for record in on_tokens(records) for name in record["metrics"]}
    shown |= {name for record in records if judged_by(record) is not None for name in record["scores"]}
    headline = (name for name, metric in known.items() if metric["headline"] and metric["better"])
    return list(wanted or (name for name in headline if name in shown))


def panels(records: Sequence[Record], metrics: Sequence[str], n_replicates: int = N_REPLICATES) -> list[Panel]:
    """Sort records into panels.

    Only seeds that every architecture has enter a panel, so that seeds are paired. SAEs from elsewhere stay out: what
    they were trained on is not what the others were trained on.

    Raises:
        UserError: the architectures of a setting have no seed in common.
    """
    settings: dict[Setting, list[Record]] = {}
    for record in records:
        sae = record["sae"]
        if sae.get("origin"):
            continue
        setting = Setting(record["provenance"]["model"], sae["site"]["name"], sae["d_sae"])
        settings.setdefault(setting, []).append(record)
    found = (_panel(setting, settings[setting], metrics, n_replicates) for setting in sorted(settings, key=str))
    return [panel for panel in found if panel.families]


def _panel(setting: Setting, records: Sequence[Record], metrics: Sequence[str], n_replicates: int) -> Panel:
    labels = sorted({record["sae"]["label"] for record in records})
    by_label = {label: {r["sae"]["seed"] for r in records if r["sae"]["label"] == label} for label in labels}
    seeds = sorted(set.intersection(*by_label.values()))
    if not seeds:
        have = "; ".join(f"{label}: {', '.join(map(str, sorted(of)))}" for label, of in by_label.items())
        raise UserError(f"the architectures at {setting.site} share no seed ({have}): give runs of the same seeds")
    n_documents = max((len(sums) for record in records for sums in record["by_document"].values()), default=1)
    weights = Weights.draw(len(seeds), n_documents, n_replicates)
    wanted = list(dict.fromkeys([*metrics, "l0"]))
    directions = {
        name: metric["better"] for record in records for name, metric in record["metrics"].items() if name in wanted
    }
    families = tuple(_family(label, records, seeds, wanted, weights) for label in labels)
    mine = tuple(record for record in records if record["sae"]["seed"] in seeds)
    return Panel(setting, weights, tuple(seeds), tuple(f for f in families if f.metrics), mine, directions)


def _family(
    label: str, records: Sequence[Record], seeds: Sequence[int], metrics: Sequence[str], weights: Weights
) -> Family:
    """For each metric, the targets at which every seed has it and the L0; what is missing says why."""
    measured: dict[tuple[str, float, int], Float[ndarray, R]] = {}
    missing: list[str] = []
    mine = [record for record in records if record["sae"]["label"] == label and record["sae"]["seed"] in seeds]
    for record in sorted(mine, key=lambda record: (target_of(record), record["sae"]["seed"], record["task"])):
        if record["failure"]:
            missing.append(f"{record['sae']['id']}: {record['failure']}")
        for name in sorted(set(record["scores"]) & set(metrics)):
            key = name, target_of(record), record["sae"]["seed"]
            if key in measured:
                raise UserError(
                    f"{record['sae']['id']} is in two of the runs: give runs that differ in architecture, target or "
                    "seed"
                )
            try:
                measured[key] = metric_replicates(record, name, weights)
            except KeyError:
                note = record["scores"][name]["note"] or "no value, or no standard error"
                missing.append(f"{record['sae']['id']}: {name}: {note}")
    targets = sorted({target for _, target, _ in measured})
    points = {}
    for name in metrics:
        kept = [t for t in targets if all((of, t, seed) in measured for of in (name, "l0") for seed in seeds)]
        l0, value = (
            [over_seeds([measured[of, target, seed] for seed in seeds], weights) for target in kept]
            for of in ("l0", name)
        )
        if kept:
            points[name] = Points(tuple(kept), np.stack(l0, axis=1), np.stack(value, axis=1))
    return Family(label, points, tuple(dict.fromkeys(missing)))


def target_of(record: Record) -> float:
    """The wanted L0, or the raw coefficient where none was wanted."""
    sae = record["sae"]
    return float(sae["target_l0"] if sae["target_l0"] is not None else sae["coefficient"])


def at(panel: Panel, metric: str, l0s: Sequence[float] = AT_L0) -> tuple[dict[float, list[Standing]], list[Difference]]:
    """Every architecture at every wanted L0 inside its measured range, and all pairs' differences there."""
    points = {family.label: family.metrics[metric] for family in panel.families if metric in family.metrics}
    heights = {label: at_l0(of.l0, of.value, l0s) for label, of in points.items()}
    inside = {
        label: [low <= wanted <= high for wanted in l0s]
        for label, of in points.items()
        for low, high in [measured_range(of.l0[0])]
    }
    values = {
        wanted: {label: heights[label][:, i] for label in heights if inside[label][i]} for i, wanted in enumerate(l0s)
    }
    differences = _differences(values, panel.weights)
    standings = {
        wanted: _standings(panel, metric, of, [d for d in differences if d.l0 == wanted])
        for wanted, of in values.items()
    }
    return standings, differences


def by_area(panel: Panel, metric: str) -> tuple[tuple[float, float] | None, list[Standing], list[Difference]]:
    """The mean height over log L0 on the range that all architectures cover: the range, standings and differences."""
    points = {family.label: family.metrics[metric] for family in panel.families if metric in family.metrics}
    between = common_range([of.l0[0] for of in points.values()]) if points else None
    if between is None:
        return None, [], []
    values = {None: {label: area(of.l0, of.value, between) for label, of in points.items()}}
    differences = _differences(values, panel.weights)
    return between, _standings(panel, metric, values[None], differences), differences


def _differences(values: Mapping[Any, Mapping[str, Float[ndarray, "R"]]], weights: Weights) -> list[Difference]:
    found = {
        (label, other, l0): estimate(of[label] - of[other], weights)
        for l0, of in values.items()
        for label, other in combinations(of, 2)
    }
    corrected = holm({key: difference.p_value for key, difference in found.items()})
    return [Difference(*key, difference, corrected[key]) for key, difference in found.items()]


def _standings(
    panel: Panel, metric: str, values: Mapping[str, Float[ndarray, "R"]], differences: Sequence[Difference]
) -> list[Standing]:
    """Best is who has the best value, and whoever is tied with it; who is alone is not."""
    estimates = {label: estimate(of, panel.weights) for label, of in values.items()}
    best: set[str] = set()
    direction = panel.directions.get(metric)
    if direction is not None and len(estimates) > 1:
        pick = max if direction == "up" else min
        leader = pick(estimates, key=lambda label: estimates[label].value)
        ties = {
            d.other if d.label == leader else d.label for d in differences if leader in (d.label, d.other) and d.tie
        }
        best = {leader} | ties
    return [Standing(family.label, estimates.get(family.label), family.label in best) for family in panel.families]
