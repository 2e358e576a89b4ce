"""The L0s that architectures are compared at unless told otherwise."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from sae_bench.records.schema import Record

AT_L0 = (20.0, 50.0, 100.0, 150.0)
"""Where some architecture was measured on both sides of one of them."""


def default_l0s(records: Sequence[Record]) -> tuple[float, ...]:
    """What every setting (model, site, width) of the records is compared at, in order.

    AT_L0; where nothing was measured there, a round number between every two neighbouring L0s that were wanted.
    """
    settings = defaultdict[tuple[object, ...], list[Record]](list)
    for record in records:
        settings[record.provenance.model, record.sae.site.name, record.sae.d_sae].append(record)
    return tuple(sorted({l0 for of in settings.values() for l0 in _of_setting(of)} or AT_L0))


def _of_setting(records: Sequence[Record]) -> tuple[float, ...]:
    measured = defaultdict[str, list[float]](list)
    for record in records:
        score = record.scores.get("l0")
        if score is not None and score.value is not None and not record.sae.origin:
            measured[record.sae.label].append(score.value)
    if any(min(of) <= l0 <= max(of) for of in measured.values() for l0 in AT_L0):
        return AT_L0
    wanted = sorted({record.sae.target_l0 for record in records if record.sae.target_l0 and not record.sae.origin})
    return tuple(round_between(low, high) for low, high in pairwise(wanted))


def round_between(low: float, high: float) -> float:
    """Their geometric mean, to as few digits as leave it between them."""
    middle = math.sqrt(low * high)
    return next((x for digits in range(1, 9) if low < (x := float(f"{middle:.{digits}g}")) < high), middle)
