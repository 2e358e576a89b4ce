"""The findings of the JumpReLU paper (arXiv 2407.14435) as checks on records: does each hold here, or can none tell?

A claim is judged in every setting (model, site, width) at every stated L0 inside the measured range. It does not hold
if one number speaks against it beyond its uncertainty. That one architecture is not worse than another holds if it
is nowhere worse and somewhere better beyond the uncertainty; where the claim says "about", also if all intervals end
before 5% worse. That a number is in a range holds if its intervals are wholly inside. Else, and where an
architecture, a metric or the range is missing, it cannot be told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sae_bench.compare import ALPHA, Difference, Panel, at
from sae_bench.curves import AT_L0
from sae_bench.leaderboard import escape_markdown
from sae_bench.resample import Estimate

Verdict = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """A claim's verdict in one setting, and the numbers behind it."""

    claim: str
    verdict: Verdict
    numbers: tuple[str, ...]


Check = Callable[[Panel, Sequence[float]], Finding]


def check_claims(panels: Sequence[Panel], l0s: Sequence[float] = AT_L0) -> list[tuple[Panel, Finding]]:
    """Judge every claim in every panel."""
    return [(panel, check(panel, l0s)) for panel in panels for check in CLAIMS]


def as_markdown(found: Sequence[tuple[Panel, Finding]]) -> str:
    """The verdicts as a Markdown list, each with its numbers."""
    lines = []
    for panel, finding in found:
        setting = panel.setting
        where = escape_markdown(f"{setting.model}, {setting.site}, width {setting.width}")
        lines.append(f"- **{finding.verdict}**: {escape_markdown(finding.claim)} ({where})")
        lines += [f"    - {escape_markdown(number)}" for number in finding.numbers]
    return "\n".join(["# Findings of the JumpReLU paper, checked on these records", "", *lines, ""])


ABOUT = 0.05
"""How much worse, relative to the other, still counts as about as good."""


def not_worse(
    metric: str, better: Literal["up", "down"], label: str, other: str, claim: str, *, about: float = 0.0
) -> Check:
    """`label` is at least as good as `other` at matched L0, or worse by a share of at most `about`."""

    def check(panel: Panel, l0s: Sequence[float]) -> Finding:
        differences = [_turned(d, label) for d in _between(panel, metric, label, other, l0s)]
        sign = 1 if better == "down" else -1
        slack = _heights(panel, metric, other, l0s) if about else {}
        worse = [(sign * d.estimate.value, sign * _worst(d.estimate, sign), about * slack.get(d.l0, 0.0))
                 for d in differences]  # fmt: skip
        against = [d for d, (value, _, room) in zip(differences, worse, strict=True)
                   if d.p_value <= ALPHA and value > room]  # fmt: skip
        numbers = tuple(
            f"L0 {d.l0:g}: {metric} of {label} - {other} = {_number(d.estimate)}, p {d.p_value:.3g}"
            for d in differences
        )
        better_somewhere = any(d.p_value <= ALPHA and sign * d.estimate.value < 0 for d in differences)
        speaks_for = bool(differences) and (
            (better_somewhere and all(value <= 0 for value, _, _ in worse))
            or (about > 0 and all(bound <= room for _, bound, room in worse))
        )
        return Finding(claim, _verdict(speaks_for, bool(against)), numbers)

    return check


def within(metric: str, label: str, low: float, high: float, claim: str) -> Check:
    """The metric is in a range at every L0."""

    def check(panel: Panel, l0s: Sequence[float]) -> Finding:
        found = []
        if any(f.label == label and metric in f.metrics for f in panel.families):
            standings, _ = at(panel, metric, l0s)
            found = [(l0, s.estimate) for l0, of in standings.items() for s in of if s.label == label and s.estimate]
        outside = [e for _, e in found if e.interval()[1] < low or e.interval()[0] > high]
        inside = [e for _, e in found if low <= e.interval()[0] and e.interval()[1] <= high]
        numbers = tuple(f"L0 {l0:g}: {metric} of {label} = {_number(e)}" for l0, e in found)
        return Finding(claim, _verdict(bool(found) and len(inside) == len(found), bool(outside)), numbers)

    return check


def _between(panel: Panel, metric: str, label: str, other: str, l0s: Sequence[float]) -> list[Difference]:
    present = {family.label for family in panel.families if metric in family.metrics}
    if not {label, other} <= present:
        return []
    return [d for d in at(panel, metric, l0s)[1] if {d.label, d.other} == {label, other}]


def _heights(panel: Panel, metric: str, label: str, l0s: Sequence[float]) -> dict[float | None, float]:
    """How large an architecture's metric is at each L0."""
    standings, _ = at(panel, metric, l0s)
    return {l0: abs(s.estimate.value) for l0, of in standings.items() for s in of if s.label == label and s.estimate}


def _worst(estimate: Estimate, sign: int) -> float:
    """The end of the interval at which a difference is worst."""
    low, high = estimate.interval()
    return high if sign > 0 else low


def _turned(difference: Difference, first: str) -> Difference:
    """The difference with `first` as the minuend."""
    if difference.label == first:
        return difference
    e = difference.estimate
    turned = Estimate(-e.value, e.stderr, e.sources, e.over_seeds)
    return Difference(difference.other, difference.label, difference.l0, turned, difference.p_value)


def _verdict(speaks_for: bool, against: bool) -> Verdict:
    if against:
        return "does not hold"
    return "holds" if speaks_for else "cannot tell"


def _number(estimate: Estimate) -> str:
    low, high = estimate.interval()
    return f"{estimate.value:.4g} [{low:.4g}, {high:.4g}]"


METRICS = ("delta_lm_loss", "fve", "dense_10pct_share", "dead_share", "gamma")
"""What the claims are about."""

CLAIMS: tuple[Check, ...] = (
    not_worse(
        "delta_lm_loss", "down", "jumprelu", "gated", "jumprelu's delta LM loss is at most gated's at matched L0"
    ),
    not_worse(
        "delta_lm_loss",
        "down",
        "jumprelu",
        "topk",
        "jumprelu's delta LM loss is at most topk's, or about it",
        about=ABOUT,
    ),
    not_worse("fve", "up", "jumprelu", "gated", "jumprelu explains at least gated's variance at matched L0"),
    not_worse("fve", "up", "jumprelu", "topk", "jumprelu explains at least topk's variance, or about it", about=ABOUT),
    not_worse(
        "dense_10pct_share", "up", "jumprelu", "gated", "jumprelu has as many latents above 10% frequency as gated"
    ),
    not_worse("dense_10pct_share", "up", "topk", "gated", "topk has as many latents above 10% frequency as gated"),
    within("dense_10pct_share", "jumprelu", -1, 6e-4, "under 0.06% of jumprelu's latents are above 10% frequency"),
    within("dense_10pct_share", "topk", -1, 6e-4, "under 0.06% of topk's latents are above 10% frequency"),
    within("dead_share", "jumprelu", -1, 0.02, "few of jumprelu's latents are dead (at most 2%) without resampling"),
    within("dead_share", "topk", -1, 0.02, "few of topk's latents are dead (at most 2%) without resampling"),
    within("gamma", "relu", 0.8, 0.95, "relu shrinks: gamma between 0.8 and 0.95"),
    within("gamma", "gated", 0.98, 1.02, "gated does not shrink: gamma about 1 (within 2%)"),
    within("gamma", "topk", 0.98, 1.02, "topk does not shrink: gamma about 1 (within 2%)"),
    within("gamma", "jumprelu", 0.98, 1.02, "jumprelu does not shrink: gamma about 1 (within 2%)"),
)
