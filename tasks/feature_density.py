"""How often each latent fires: the dead, the dense, and everything between."""

import numpy as np
import torch

from sae_bench import (
    EvalBatch,
    EvalSetting,
    Metric,
    Result,
    Score,
    Task,
    jackknife_stderr,
    register_task,
)

N_GROUPS = 20
"""Documents are dealt into this many groups; leaving one out at a time gives the shares' standard errors."""

HISTOGRAM_EDGES = np.arange(-7.0, 0.25, 0.25)
"""Bin edges in log10 of the frequency."""


@register_task("feature_density")
class FeatureDensity(Task):
    """Per-latent frequency, the share of counted tokens with f_i != 0 (docs/formulas.md)."""

    version = "1"
    metrics = (
        Metric("dead_share", "down", "", "share of latents that never fire on the n evaluation tokens", headline=True),
        Metric("dense_1pct_share", None, "", "share of latents that fire on more than 1% of tokens"),
        Metric("dense_10pct_share", "down", "", "share of latents that fire on more than 10% of tokens", headline=True),
    )

    def start(self, setting: EvalSetting) -> None:
        # Counts as float64 are exact far beyond any number of tokens.
        self.counts = torch.zeros(N_GROUPS, setting.sae.config.d_sae, dtype=torch.float64, device=setting.device)
        self.tokens = torch.zeros(N_GROUPS, dtype=torch.float64, device=setting.device)

    def update(self, batch: EvalBatch) -> None:
        group = batch.document % N_GROUPS
        self.tokens.index_add_(0, group, torch.ones_like(group, dtype=torch.float64))
        self.counts += batch.f.count_per_latent(group, N_GROUPS)

    def finish(self) -> Result:
        counts, tokens = self.counts.cpu().numpy(), self.tokens.cpu().numpy()
        total, n = counts.sum(0), int(tokens.sum())
        seen = np.flatnonzero(tokens)
        left_out = [(total - counts[group]) / (n - tokens[group]) for group in seen] if len(seen) > 1 else []

        def share_above(cut: float) -> Score:
            return Score(
                float((total / n > cut).mean()), jackknife_stderr(np.array([(f > cut).mean() for f in left_out])), n
            )

        alive = share_above(0.0)
        assert alive.value is not None
        scores = {
            "dead_share": Score(1 - alive.value, alive.stderr, n),
            "dense_1pct_share": share_above(0.01),
            "dense_10pct_share": share_above(0.1),
        }
        frequency = total[total > 0] / n
        histogram, _ = np.histogram(np.log10(frequency), bins=HISTOGRAM_EDGES)
        return Result(
            scores,
            per_latent={"count": total.astype(int).tolist()},
            details={"log10_frequency_edges": HISTOGRAM_EDGES.tolist(), "histogram": histogram.tolist(), "n_tokens": n},
        )
