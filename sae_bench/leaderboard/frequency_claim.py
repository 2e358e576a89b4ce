"""Whether latents that fire more often score lower, judged within each SAE.

SAEs of different L0 differ in how often latents fire and in how they score, and a correlation over the latents of all
of them is then one of SAEs (Simpson's paradox). So ranks are taken within an SAE, and its correlation counts with the
number of its latents less one: that sum has, whatever ties there are, exactly the variance 1 / sum(n - 1) if scores and
frequencies belong together by chance (van Elteren's weights, 1960).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from sae_bench.leaderboard.compare import Comparison
from sae_bench.leaderboard.verdicts import Check, JudgedClaim, judged

FEWEST = 10
"""An SAE with fewer judged latents is left out: the interval's approximation is not good for it."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation, the mean over SAEs, with Bonett and Wright's interval (2000)."""

    value: float
    degrees: int
    """The sum over SAEs of the number of latents - 3."""

    def interval(self, level: float) -> tuple[float, float]:
        """The interval of that level, by Fisher's transformation."""
        half = stats.norm.ppf((1 + level) / 2) * math.sqrt((1 + self.value**2 / 2) / self.degrees)
        centre = math.atanh(max(-1 + 1e-9, min(1 - 1e-9, self.value)))
        return math.tanh(centre - half), math.tanh(centre + half)


def within_saes(saes: Sequence[Float[ndarray, "_ 2"]]) -> Correlation:
    """The correlation of two columns within SAEs, given each one's n latents; no column may be of one value."""
    weights = [len(latents) - 1 for latents in saes]
    correlations = [stats.spearmanr(*latents.T).statistic for latents in saes]
    return Correlation(float(np.average(correlations, weights=weights)), sum(len(latents) - 3 for latents in saes))


def falls_with_frequency(metrics: Sequence[str], claim: str) -> Check:
    """Score and frequency are negatively correlated within the SAEs of every architecture.

    Frequencies are those of the evaluation tokens. Latents are taken as independent, those of several SAEs as well.
    """

    def check(comparison: Comparison, l0s: Sequence[float]) -> JudgedClaim:
        found, notes = [], []
        for metric in metrics:
            for architecture in comparison.architectures:
                latents = _judged_latents(comparison, architecture.label, metric)
                usable = [of for of in latents if len(of) >= FEWEST and all(np.ptp(of, axis=0) > 0)]
                if usable:
                    n = f"{sum(map(len, usable)):,} latents of {len(usable)} SAEs"
                    name = f"{architecture.label}: rank correlation of {metric} with frequency within SAEs, {n}"
                    found.append((name, within_saes(usable)))
                if left_out := len(latents) - len(usable):
                    why = f"fewer than {FEWEST} judged latents, or all alike"
                    notes.append(f"{architecture.label}: {metric} of {left_out} SAEs left out: {why}")
        return judged(claim, found, -1.0, 0.0, notes or ([] if found else ["no latent was judged"]))

    return check


def _judged_latents(comparison: Comparison, label: str, metric: str) -> list[Float[ndarray, "_ 2"]]:
    """Frequency and score of every latent that has a score, for each SAE of an architecture that has any."""
    frequency = {
        record.sae.id: np.asarray(record.per_latent["count"]) / record.details["n_tokens"]
        for record in comparison.records
        if "count" in record.per_latent and "n_tokens" in record.details
    }
    saes = []
    for record in comparison.records:
        values = record.details.get("values", {}).get(metric)
        if record.sae.label == label and record.sae.id in frequency and values is not None:
            scores = zip(record.details["latents"], values, strict=True)
            latents = [(frequency[record.sae.id][latent], value) for latent, value in scores if value is not None]
            saes += [np.array(latents)] if latents else []
    return saes
