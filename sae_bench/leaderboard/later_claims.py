"""Claims that came after the JumpReLU paper, as checks on records, each with where it was made and what decides it.

They are judged like the others (`verdicts`), and by comparisons that controls are in: two of the claims are about them.
What is cited is where a paper states the claim itself; margins were set before any board was judged by them.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from scipy import stats

from sae_bench.leaderboard.bootstrap import LEVEL, Estimate
from sae_bench.leaderboard.claims import CHANCE, JUDGED, SCORES_ABOUT
from sae_bench.leaderboard.compare import Comparison
from sae_bench.leaderboard.verdicts import (
    Check,
    JudgedClaim,
    Verdict,
    all_within,
    contrast,
    line,
    not_worse,
    notes_on,
    rounded,
    where_it_tells,
)

CLOSE = SCORES_ABOUT
"""How much a frozen control may lose and still come close, in a judge's scores and in the AUC of probes.

A tenth of the way from chance (.5) to perfect (1), and above the .03 that Korznikov et al. call a match.
"""

PROBED = ("auc_k1", "auc_k16")
RECONSTRUCTION, RECOVERY = "fve", "f1"
ABSORBED, LETTERS = "absorption_fraction_centred", "split_latents_f1"
"""Out of x - b_dec: where x has a large mean, that of x says something of the mean (docs/absorption.md)."""

METRICS = (RECONSTRUCTION, RECOVERY, "delta_lm_loss", ABSORBED, LETTERS, *PROBED, *JUDGED)
"""What the claims are about."""

MOST_PAIRS = 4
"""Pairs that are printed of those that disagree."""


def with_the_same_of(check: Check, metric: str, arch: str, than: str) -> Check:
    """A claim with another metric's differences beside it, which decide nothing and have to be read with it."""

    def beside(comparison: Comparison, l0s: Sequence[float]) -> JudgedClaim:
        found = check(comparison, l0s)
        pair = {arch: 1.0, than: -1.0}
        at = [(l0, number) for l0 in l0s if (number := contrast(comparison, metric, l0, pair)) is not None]
        lines = [_line(f"beside it, L0 {l0:g}: {metric} of {arch} - {than}", number, LEVEL) for l0, number in at]
        return replace(found, numbers=(*found.numbers, *lines))

    return beside


Pair = tuple[str, tuple[Estimate, Estimate]]
"""Two architectures by name, and their difference in each of two metrics."""


def disagree(one: str, other: str, claim: str) -> Check:
    """Two metrics, of both of which more is better, put some pair of architectures in opposite orders at one L0."""

    def check(comparison: Comparison, l0s: Sequence[float]) -> JudgedClaim:
        pairs, notes = _pairs(comparison, (one, other), l0s)
        if not pairs:
            return JudgedClaim(claim, "cannot tell", tuple(notes))
        verdict, opposite, n_alike = judged_orders(pairs)
        level = _family_level(len(pairs))
        rule = (
            f"wanted: a pair of architectures that {one} and {other} put in opposite orders; holds if one is told "
            f"apart in both by {100 * level:.4g}% intervals (95% for {len(pairs)} together), does not hold if every "
            "pair is told apart in the same order by 95% intervals"
        )
        counts = f"{len(opposite)} of {len(pairs)} pairs are told apart in opposite orders, {n_alike} in the same"
        shown = [
            _line(name.replace(": ", f": {metric} of "), number, level)
            for name, of in opposite[:MOST_PAIRS]
            for metric, number in zip((one, other), of, strict=True)
        ]
        return JudgedClaim(claim, verdict, (rule, counts, *shown, *notes), (one, other))

    return check


def judged_orders(pairs: Sequence[Pair]) -> tuple[Verdict, list[Pair], int]:
    """The verdict, the pairs that are told apart in opposite orders, surest first, and how many are in the same.

    A pair is told apart in a metric where the interval of its difference lies on one side of zero. That some pair of K
    is in opposite orders holds if one is told apart in both metrics so, by intervals of the level 1 - .05 / K
    (Bonferroni); it does not hold if every pair is told apart in both, in the same order, at 95%.
    """
    level = _family_level(len(pairs))
    opposite = [pair for pair in pairs if _side(pair[1][0], level) * _side(pair[1][1], level) < 0]
    n_alike = sum(_side(first, LEVEL) * _side(second, LEVEL) > 0 for _, (first, second) in pairs)
    opposite.sort(key=lambda pair: -min(abs(of.value) / of.stderr for of in pair[1]))
    if opposite:
        return "holds", opposite, n_alike
    return "does not hold" if n_alike == len(pairs) else "cannot tell", [], n_alike


def _family_level(n_pairs: int) -> float:
    return 1 - (1 - LEVEL) / n_pairs


def _pairs(comparison: Comparison, metrics: tuple[str, str], l0s: Sequence[float]) -> tuple[list[Pair], list[str]]:
    """The differences of all pairs of architectures in both metrics, by name; and what is to be known of them."""
    labels = [one.label for one in comparison.architectures if not one.control]
    found: list[Pair] = []
    notes = []
    for l0 in l0s:
        heights = [comparison.heights(metric, [l0])[l0] for metric in metrics]
        both = [label for label in labels if all(label in of for of in heights)]
        for pair in combinations(both, 2):
            one, other = (contrast(comparison, of, l0, dict(zip(pair, (1.0, -1.0), strict=True))) for of in metrics)
            if one and other:
                found.append((f"L0 {l0:g}: {pair[0]} - {pair[1]}", (one, other)))
        if len(both) > 1:
            tau = stats.kendalltau(*([of[label][0] for label in both] for of in heights)).statistic
            notes.append(
                f"L0 {l0:g}: Kendall's rank correlation of {' and '.join(metrics)} over {len(both)} is {tau:.2f}"
            )
    of_pairs = [name for name, _ in found]
    return found, [*notes, *notes_on(comparison, metrics, labels, l0s, of_pairs)]


def _side(number: Estimate, level: float) -> int:
    """Which side of zero the interval lies on: 1, -1, or 0 where it holds zero."""
    low, high = rounded(number.interval(level))
    return (low > 0) - (high < 0)


def _line(name: str, number: Estimate, level: float) -> str:
    return line(name, number.value, {LEVEL: rounded(number.interval(LEVEL)), level: rounded(number.interval(level))})


MATRYOSHKA, BATCHTOPK = "Bussmann et al. 2025, arXiv 2503.17547, abstract", "Bussmann et al. 2024, arXiv 2412.06410"
FROZEN = "Korznikov et al. 2026, arXiv 2602.14111, abstract"
SYNTH = "Chanin and Garriga-Alonso 2026, arXiv 2602.14687, abstract"


def _comes_close(control: str, metrics: Sequence[str], what: str) -> Check:
    return all_within(
        metrics, [{"topk": 1.0, control: -1.0}], -float("inf"), CLOSE,
        f"{control} comes close to topk {what} (loses at most {CLOSE:g}; {FROZEN})",
    )  # fmt: skip


def _judged_close(control: str) -> Check:
    """The same by the scores of a judge that can tell."""

    def close(metrics: Sequence[str]) -> Check:
        return _comes_close(control, metrics, "in judged interpretability")

    return where_it_tells(CHANCE, ("topk", control), CLOSE, close)


LATER_CLAIMS: tuple[Check, ...] = (
    *(
        with_the_same_of(
            not_worse(
                ABSORBED, "down", "matryoshka", than,
                f"matryoshka absorbs at most what {than} does at matched L0 ({MATRYOSHKA})",
            ),
            LETTERS, "matryoshka", than,
        )
        for than in ("batchtopk", "topk")
    ),
    not_worse(
        RECONSTRUCTION, "up", "batchtopk", "topk",
        f"batchtopk explains at least topk's variance at matched L0 ({BATCHTOPK}, abstract)",
    ),
    not_worse(
        "delta_lm_loss", "down", "batchtopk", "topk",
        f"batchtopk's delta LM loss is at most topk's at matched L0 ({BATCHTOPK})",
    ),
    *(
        _comes_close(control, PROBED, "at sparse probing")
        for control in ("frozen_decoder", "frozen_encoder")
    ),
    *(
        _judged_close(control)
        for control in ("frozen_decoder", "frozen_encoder")
    ),
    disagree(
        RECONSTRUCTION, RECOVERY,
        f"reconstruction and recovery of known features disagree about architectures ({SYNTH})",
    ),
)  # fmt: skip
