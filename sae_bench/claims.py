"""The findings of the JumpReLU paper (arXiv 2407.14435) as checks on records: does each hold here, or can none tell?

A claim is judged in every setting (model, site, width) at every stated L0 inside the measured range. It does not hold
if one number speaks against it beyond its uncertainty. That one architecture is not worse than another holds if it
is nowhere worse and somewhere better beyond the uncertainty; where the claim says "about", also if all intervals end
before 5% worse. That a number is in a range holds if its intervals are wholly inside. Else, and where an
architecture, a metric, the range or a judge is missing, it cannot be told.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy import stats

from sae_bench.compare import ALPHA, Difference, Panel, Record, at
from sae_bench.curves import AT_L0
from sae_bench.leaderboard import escape_markdown
from sae_bench.resample import Estimate, holm

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
    metric: str, better: Literal["up", "down"], arch: str, than: str, claim: str, *, about: float = 0.0
) -> Check:
    """`arch` is at least as good as `than` at matched L0, or worse by a share of at most `about`."""

    def check(panel: Panel, l0s: Sequence[float]) -> Finding:
        label, other = _name(panel, arch), _name(panel, than)
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


def within(metric: str, arch: str, low: float, high: float, claim: str) -> Check:
    """The metric is in a range at every L0."""

    def check(panel: Panel, l0s: Sequence[float]) -> Finding:
        label, found = _name(panel, arch), []
        if any(f.label == label and metric in f.metrics for f in panel.families):
            standings, _ = at(panel, metric, l0s)
            found = [(l0, s.estimate) for l0, of in standings.items() for s in of if s.label == label and s.estimate]
        outside = [e for _, e in found if e.interval()[1] < low or e.interval()[0] > high]
        inside = [e for _, e in found if low <= e.interval()[0] and e.interval()[1] <= high]
        numbers = tuple(f"L0 {l0:g}: {metric} of {label} = {_number(e)}" for l0, e in found)
        return Finding(claim, _verdict(bool(found) and len(inside) == len(found), bool(outside)), numbers)

    return check


def about_equal(metrics: Sequence[str], archs: Sequence[str], room: float, claim: str) -> Check:
    """No two of the architectures differ in any of the metrics by more than `room` at matched L0."""

    def check(panel: Panel, l0s: Sequence[float]) -> Finding:
        found = [
            (metric, d)
            for metric in metrics
            for label, other in combinations((_name(panel, arch) for arch in archs), 2)
            for d in (_turned(d, label) for d in _between(panel, metric, label, other, l0s))
        ]
        far = [d for _, d in found if d.p_value <= ALPHA and abs(d.estimate.value) > room]
        near = [d for _, d in found if max(map(abs, d.estimate.interval())) <= room]
        numbers = tuple(
            f"L0 {d.l0:g}: {metric} of {d.label} - {d.other} = {_number(d.estimate)}, p {d.p_value:.3g}"
            for metric, d in found
        )
        return Finding(claim, _verdict(bool(found) and len(near) == len(found), bool(far)), numbers)

    return check


def falls_with_frequency(metrics: Sequence[str], claim: str) -> Check:
    """Over the judged latents of an architecture, a score and the frequency have a negative rank correlation.

    Frequencies are those of the evaluation tokens. Latents of all targets and seeds are taken together; the interval
    is Bonett and Wright's (2000), and p-values are corrected for the number of correlations (Holm).
    """

    def check(panel: Panel, l0s: Sequence[float]) -> Finding:
        found, p_values, numbers = {}, {}, []
        for metric in metrics:
            for family in panel.families:
                latents = np.array(_judged_latents(panel, family.label, metric))
                if len(latents) > 3 and all(np.ptp(latents, axis=0) > 0):
                    rho, p_values[metric, family.label] = stats.spearmanr(*latents.T)
                    found[metric, family.label] = float(rho), len(latents)
                elif len(latents):
                    numbers.append(f"{family.label}: {metric} of {len(latents):,} latents: too few or all alike")
        corrected = holm(p_values)
        against = any(rho > 0 and corrected[key] <= ALPHA for key, (rho, _) in found.items())
        speaks_for = all(rho <= 0 for rho, _ in found.values()) and any(p <= ALPHA for p in corrected.values())
        for (metric, label), (rho, n) in found.items():
            half = stats.norm.ppf(1 - ALPHA / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
            centre = math.atanh(max(-1 + 1e-9, min(1 - 1e-9, rho)))
            low, high = math.tanh(centre - half), math.tanh(centre + half)
            numbers.append(
                f"{label}: rank correlation of {metric} with frequency = {rho:.3g} [{low:.3g}, {high:.3g}] over "
                f"{n:,} latents, p {corrected[metric, label]:.3g}"
            )
        return Finding(claim, _verdict(speaks_for, against), tuple(numbers))

    return check


def _judged_latents(panel: Panel, label: str, metric: str) -> list[tuple[float, float]]:
    """Frequency and score of every latent of an architecture that has a score."""
    frequency = {
        record["sae"]["id"]: np.asarray(record["per_latent"]["count"]) / record["details"]["n_tokens"]
        for record in panel.records
        if "count" in record["per_latent"] and "n_tokens" in record["details"]
    }
    return [
        (float(frequency[record["sae"]["id"]][latent]), value)
        for record in panel.records
        if record["sae"]["label"] == label and record["sae"]["id"] in frequency
        for latent, value in zip(*_values(record, metric), strict=True)
        if value is not None
    ]


def _values(record: Record, metric: str) -> tuple[list[int], list[float | None]]:
    """The latents that a record is about, and what each scored; none, where it is not about latents."""
    details = record["details"]
    return (details["latents"], details["values"][metric]) if metric in details.get("values", {}) else ([], [])


def _name(panel: Panel, arch: str) -> str:
    """The label of an architecture in a panel: its name, or with settings, if it is there with one choice of them."""
    labels = {record["sae"]["label"] for record in panel.records if record["sae"]["arch"] == arch}
    return labels.pop() if len(labels) == 1 else arch


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
    return difference.turned(first)


def _verdict(speaks_for: bool, against: bool) -> Verdict:
    if against:
        return "does not hold"
    return "holds" if speaks_for else "cannot tell"


def _number(estimate: Estimate) -> str:
    low, high = estimate.interval()
    return f"{estimate.value:.4g} [{low:.4g}, {high:.4g}]"


JUDGED = ("detection", "fuzzing", "simulation")
METRICS = ("delta_lm_loss", "fve", "dense_10pct_share", "dead_share", "gamma", *JUDGED)
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
    falls_with_frequency(JUDGED, "latents that fire more often are less interpretable"),
    within("dead_share", "jumprelu", -1, 0.02, "few of jumprelu's latents are dead (at most 2%) without resampling"),
    within("dead_share", "topk", -1, 0.02, "few of topk's latents are dead (at most 2%) without resampling"),
    about_equal(
        JUDGED,
        ("jumprelu", "gated", "topk"),
        0.05,
        "jumprelu, gated and topk are about equally interpretable (scores within 0.05)",
    ),
    within("gamma", "relu", 0.8, 0.95, "relu shrinks: gamma between 0.8 and 0.95"),
    within("gamma", "gated", 0.98, 1.02, "gated does not shrink: gamma about 1 (within 2%)"),
    within("gamma", "topk", 0.98, 1.02, "topk does not shrink: gamma about 1 (within 2%)"),
    within("gamma", "jumprelu", 0.98, 1.02, "jumprelu does not shrink: gamma about 1 (within 2%)"),
)
