"""What stands below tables of comparisons: what ± is, and what it does not cover."""

from collections.abc import Sequence

from sae_bench.leaderboard.bootstrap import MIN_DOCUMENTS
from sae_bench.leaderboard.compare import Architecture, Comparison

WIDE_GAP = 2.5
"""Between neighbouring L0s, as a ratio: doublings stay below it, also where they are missed by a little."""


def note(comparisons: Sequence[Comparison], l0s: Sequence[float] = ()) -> str:
    """What ± is, how many seeds and documents it covers, and what it does not cover; for values at `l0s`, if any."""
    n_seeds = sorted({len(comparison.seeds) for comparison in comparisons})
    seeds = (
        "one seed, so variance between seeds is unknown" if n_seeds == [1] else f"{', '.join(map(str, n_seeds))} seeds"
    )
    n_documents = sorted({comparison.design.n_documents for comparison in comparisons})
    documents = f"{', '.join(map(str, n_documents))} document{'s' * (n_documents != [1])}"
    if n_documents and n_documents[0] < MIN_DOCUMENTS:
        documents += f", too few for an interval (from {MIN_DOCUMENTS} on): raise --eval-tokens"
    told = (
        f"± is half of the 95% interval; {seeds}; {documents}. The choice of training data is not in it. It is "
        "that of a value alone: differences have their own."
    )
    return " ".join(filter(None, [told, across(comparisons, l0s)]))


def across(comparisons: Sequence[Comparison], l0s: Sequence[float]) -> str:
    """Which L0s lie in a wide gap between an architecture's SAEs, where the curve is anybody's guess; "" if none."""
    gaps = {l0: max((_gap(one, l0) for of in comparisons for one in of.architectures), default=1.0) for l0 in l0s}
    wide = [f"{l0:g}" for l0, gap in gaps.items() if gap > WIDE_GAP]
    if not wide:
        return ""
    return (
        f"L0 {' and '.join(wide)}: read off curves between SAEs whose L0s are up to {max(gaps.values()):.1f} times "
        "apart; others between them would move these values."
    )


def _gap(architecture: Architecture, l0: float) -> float:
    """The ratio of an architecture's measured L0s on either side of one."""
    measured = architecture.metrics["l0"].l0[0] if "l0" in architecture.metrics else []
    below, above = [x for x in measured if x <= l0], [x for x in measured if x > l0]
    return float(min(above) / max(below)) if below and above and l0 not in below else 1.0
