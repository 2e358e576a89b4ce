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

from sae_bench.curves import AT_L0, area, at_l0, common_range, measured_range
from sae_bench.errors import UserError, did_you_mean
from sae_bench.leaderboard import on_tokens
from sae_bench.resample import Estimate, Weights, estimate, holm, metric_replicates, over_seeds

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
class Family:
    """One architecture in a setting: its replicates of L0 and of each metric, [R, T], in the order of the targets."""

    label: str
    targets: tuple[float, ...]
    l0: Float[ndarray, "R T"]
    metrics: dict[str, Float[ndarray, "R T"]]
    missing: tuple[str, ...]
    """SAEs that have no value, and why."""


@dataclass(frozen=True)
class Panel:
    """All architectures of a setting, on the same seeds and documents."""

    setting: Setting
    weights: Weights
    seeds: tuple[int, ...]
    families: tuple[Family, ...]
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

    Raises:
        UserError: one of them is in no record.
    """
    known = {name: metric for record in on_tokens(records) for name, metric in record["metrics"].items()}
    for name in wanted or ():
        if name not in known:
            raise UserError(f'unknown metric "{name}"{did_you_mean(name, known)}')
    return list(wanted or (name for name, metric in known.items() if metric["headline"] and metric["better"]))


def panels(records: Sequence[Record], metrics: Sequence[str]) -> list[Panel]:
    """Sort records into panels.

    Only seeds that every architecture has enter a panel, so that seeds are paired.
    """
    settings: dict[Setting, list[Record]] = {}
    for record in on_tokens(records):
        sae = record["sae"]
        setting = Setting(record["provenance"]["model"], sae["site"]["name"], sae["d_sae"])
        settings.setdefault(setting, []).append(record)
    return [_panel(setting, settings[setting], metrics) for setting in sorted(settings, key=str)]


def _panel(setting: Setting, records: Sequence[Record], metrics: Sequence[str]) -> Panel:
    labels = sorted({record["sae"]["label"] for record in records})
    by_label = {label: {r["sae"]["seed"] for r in records if r["sae"]["label"] == label} for label in labels}
    seeds = sorted(set.intersection(*by_label.values()))
    n_documents = max(len(sums) for record in records for sums in record["by_document"].values())
    weights = Weights.draw(len(seeds), n_documents)
    wanted = list(dict.fromkeys([*metrics, "l0"]))
    directions = {
        name: metric["better"] for record in records for name, metric in record["metrics"].items() if name in wanted
    }
    families = tuple(_family(label, records, seeds, wanted, weights) for label in labels)
    return Panel(setting, weights, tuple(seeds), tuple(f for f in families if f.targets), directions)


def _family(
    label: str, records: Sequence[Record], seeds: Sequence[int], metrics: Sequence[str], weights: Weights
) -> Family:
    """Targets at which every seed has every metric; what else there is, is missing and says why."""
    mine = [record for record in records if record["sae"]["label"] == label]
    targets = sorted({target_of(record) for record in mine})
    kept, columns, missing = [], {name: [] for name in metrics}, []  # type: ignore[var-annotated]
    for target in targets:
        found: dict[str, list[Float[ndarray, R]]] = {name: [] for name in metrics}
        for seed in seeds:
            for record in mine:
                if record["sae"]["seed"] == seed and target_of(record) == target:
                    if record["failure"]:
                        missing.append(f"{record['sae']['id']}: {record['failure']}")
                    for name in set(record["scores"]) & set(metrics):
                        if record["scores"][name]["value"] is not None:
                            stream = int(target) * 1000 + seed
                            found[name].append(metric_replicates(record, name, weights, stream))
        if all(len(of) == len(seeds) for of in found.values()):
            kept.append(target)
            for name, of in found.items():
                columns[name].append(over_seeds(of, weights))
    stacked = {name: np.stack(of, axis=1) for name, of in columns.items()} if kept else {}
    return Family(label, tuple(kept), stacked.get("l0", np.empty((0, 0))), stacked, tuple(dict.fromkeys(missing)))


def target_of(record: Record) -> float:
    """The wanted L0, or the raw coefficient where none was wanted."""
    sae = record["sae"]
    return float(sae["target_l0"] if sae["target_l0"] is not None else sae["coefficient"])


def at(panel: Panel, metric: str, l0s: Sequence[float] = AT_L0) -> tuple[dict[float, list[Standing]], list[Difference]]:
    """Every architecture at every wanted L0 inside its measured range, and all pairs' differences there."""
    heights = {family.label: at_l0(family.l0, family.metrics[metric], l0s) for family in panel.families}
    inside = {
        family.label: [low <= wanted <= high for wanted in l0s]
        for family in panel.families
        for low, high in [measured_range(family.l0[0])]
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
    between = common_range([family.l0[0] for family in panel.families])
    if between is None:
        return None, [], []
    values = {None: {f.label: area(f.l0, f.metrics[metric], between) for f in panel.families}}
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
    """Best is who has the best value, and whoever is tied with it."""
    estimates = {label: estimate(of, panel.weights) for label, of in values.items()}
    best: set[str] = set()
    direction = panel.directions.get(metric)
    if direction is not None and estimates:
        pick = max if direction == "up" else min
        leader = pick(estimates, key=lambda label: estimates[label].value)
        ties = {
            d.other if d.label == leader else d.label for d in differences if leader in (d.label, d.other) and d.tie
        }
        best = {leader} | ties
    return [Standing(family.label, estimates.get(family.label), family.label in best) for family in panel.families]
