"""The order of a board's rows: the Pareto front first, controls last, and which architectures are the N best.

The front is that of L0 and the primary metric among the SAEs of a model, site and width, controls left out: none of
them is better with as few active latents.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sae_bench.leaderboard.curves import pareto_front
from sae_bench.leaderboard.load import metrics_of
from sae_bench.leaderboard.setting import Setting
from sae_bench.records.schema import Record

OF_TRUTH = "f1"

PRIMARY = ("delta_lm_loss", OF_TRUTH)
"""Added loss, and of a synthetic world, which has none, how well features are found."""

MISS = 0.10
"""How far from the wanted L0 an SAE's may be, unmarked, as a share of it."""

Place = tuple[str, str]
"""A run's hash and an SAE's name in it."""

Row = tuple[Setting, float | None, str]
"""Setting, target and label: what seeds have in common."""


def place_of(record: Record) -> Place:
    return record.provenance.config_hash[:8], record.sae.id


def primary(records: Sequence[Record]) -> str | None:
    """What boards are ordered by: one of `PRIMARY`, else the first headline metric that has a better direction."""
    headline = [name for name, metric in metrics_of(records).items() if metric.headline and metric.better]
    return next((name for name in (*PRIMARY, *headline) if name in headline), None)


def values(records: Iterable[Record], metric: str) -> dict[Place, float]:
    """A metric of the SAEs that have it."""
    with_it = (record for record in records if metric in record.metrics and metric in record.scores)
    scores = ((place_of(record), record.scores[metric].value) for record in with_it)
    return {place: value for place, value in scores if value is not None}


def front(records: Sequence[Record]) -> set[Place]:
    """The SAEs on the Pareto front."""
    metric = primary(records)
    if metric is None:
        return set()
    l0, value, up = values(records, "l0"), values(records, metric), metrics_of(records)[metric].better == "up"
    by_setting: dict[Setting, list[Place]] = {}
    for record in records:
        if metric in record.metrics and (place := place_of(record)) in l0 and place in value and not record.sae.control:
            by_setting.setdefault(Setting.of(record), []).append(place)
    found = set()
    for places in by_setting.values():
        of = list(dict.fromkeys(places))
        found |= {of[i] for i in pareto_front([l0[p] for p in of], [value[p] for p in of], up=up)}
    return found


def missed(records: Sequence[Record]) -> set[Place]:
    """The SAEs whose L0 is more than `MISS` from the one that was wanted."""
    l0 = values(records, "l0")
    with_it = (record for record in records if "l0" in record.metrics)
    return {
        place for record in with_it if (place := place_of(record)) in l0 and is_missed(l0[place], record.sae.target_l0)
    }


def is_missed(l0: float, wanted: float | None) -> bool:
    """Whether an L0 was wanted, and is not there."""
    return wanted is not None and abs(l0 - wanted) > MISS * wanted


def mark(*, on_front: bool, missed: bool) -> str:
    """What a row is marked with; `captions.of_marks` says what it means."""
    return " ".join(["*"] * on_front + ["!"] * missed)


def top(records: Sequence[Record], n: int) -> set[Row]:
    """The rows of the n best architectures, and of the best control, at every target of every setting.

    Best is meant by the primary metric, mean over seeds; what has no value of it is left out.
    """
    metric = primary(records)
    if metric is None:
        return {(Setting.of(record), record.sae.target, record.sae.label) for record in records}
    value, sign = values(records, metric), 1 if metrics_of(records)[metric].better == "up" else -1
    groups: dict[tuple[Setting, float | None, bool], dict[str, list[float]]] = {}
    for record in records:
        if metric in record.metrics and (place := place_of(record)) in value:
            group = groups.setdefault((Setting.of(record), record.sae.target, record.sae.control), {})
            group.setdefault(record.sae.label, []).append(value[place])
    return {
        (setting, target, label)
        for (setting, target, control), of in groups.items()
        for label in best(of, sign, 1 if control else n)
    }


def best(values: Mapping[str, Sequence[float]], sign: int, n: int) -> list[str]:
    """The labels of the n best means."""
    return sorted(values, key=lambda label: (-sign * float(np.mean(values[label])), label))[:n]
