"""Are the latents the features that the activations were made of? Of a synthetic world alone this is known."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_bench import (
    EvalBatch,
    EvalSetting,
    Metric,
    Result,
    Score,
    Task,
    abs_cosines,
    best_features,
    detection,
    jackknife_stderr,
    matched_cosine,
    register_task,
    unique_share,
)

GROUPS = 32
"""Documents are put into so many groups at most, and one group left out at a time for the errors."""

STEPS = torch.arange(-10, 21) / 5
"""Thresholds that the true dictionary's own encoder is tried with: 2 to these powers, 0.25 to 16."""

CELLS_AT_ONCE = 1 << 23


class OwnEncoder:
    """The true dictionary as its own encoder, with one threshold for all features: what an SAE is held against.

    It is the same for all SAEs, so that they count it together.
    """

    def __init__(self, features: Float[Tensor, "N D"], bias: Float[Tensor, " D"]) -> None:
        self.features, self.bias, self.n_tokens = features, bias, 0
        self._bins = torch.zeros(2, len(self.features) * (len(STEPS) + 1), dtype=torch.float64, device=bias.device)
        """How often a projection is between two thresholds, feature by feature: at all, and where the feature fires."""

    def count(self, x: Float[Tensor, "n D"], fires: Bool[Tensor, "n N"]) -> None:
        """Take some more activations, and which features fire in them."""
        at_once = max(1, CELLS_AT_ONCE // len(self.features))
        for some, true in zip(x.split(at_once), fires.split(at_once), strict=True):
            projections = (some - self.bias) @ self.features.T
            bins = torch.bucketize(projections, 2 ** STEPS.to(x.device), right=True)
            cells = bins + torch.arange(len(self.features), device=x.device) * (len(STEPS) + 1)
            for count, counted in zip(self._bins, (cells.flatten(), cells[true]), strict=True):
                count.add_(torch.bincount(counted, minlength=len(count)))
        self.n_tokens += len(x)

    def best(self, n_latents: int) -> dict[str, float]:
        """What it reaches at the threshold of best F1: over all features, and `f1_at_width` over the n best."""
        above = self._bins.view(2, len(self.features), -1).flip(2).cumsum(2).flip(2)
        fired, both, true = above[0, :, 1:], above[1, :, 1:], above[1, :, :1].expand(-1, len(STEPS))
        found = detection(both, fired, true)
        at = int(found.f1.mean(0).argmax())
        largest = found.f1[:, at].sort(descending=True).values[:n_latents]
        named = {name: float(of[:, at].mean()) for name, of in zip(found._fields, found, strict=True)}
        threshold = float(2 ** STEPS[at])
        return {**named, "mcc": 1.0, "uniqueness": 1.0, "threshold": threshold, "f1_at_width": float(largest.mean())}


@register_task("ground_truth")
class GroundTruth(Task):
    """Latents held against the features of a synthetic world (SynthSAEBench, arXiv 2602.14687; docs/synthetic.md).

    A latent's feature is the one that its decoder row has the largest |cosine| with; precision, recall and F1 say how
    well the latent's firing tells when that feature fires, and are means over all latents, 0 where a latent or its
    feature never fires. `mcc` matches latents and features one to one, `uniqueness` counts different features. The
    record has every latent's feature and counts, and a `ceiling`: what the true dictionary reaches whose encoder is the
    dictionary itself with one threshold, the best of 31.
    """

    version = "1"
    needs_truth = True
    metrics = (
        Metric("f1", "up", "", "mean over latents of F1 in telling when their best feature fires", headline=True),
        Metric("mcc", "up", "", "mean |cosine| of decoder rows matched one to one with features", headline=True),
        Metric("uniqueness", "up", "", "different best features for each latent", headline=True),
        Metric("precision", "up", "", "mean share of a latent's firings at which its feature fires"),
        Metric("recall", "up", "", "mean share of a feature's firings at which its latent fires"),
    )

    def start(self, setting: EvalSetting) -> None:
        assert setting.world is not None, "needs_truth"
        cosines = abs_cosines(setting.sae.W_dec.detach(), setting.world.features)
        self.mcc, self.best = matched_cosine(cosines), best_features(cosines)
        n_groups = max(1, min(GROUPS, setting.n_documents))
        self.counts = torch.zeros(3, n_groups, len(self.best), dtype=torch.float64, device=setting.device)
        self.n_tokens = 0
        self.own = setting.shared.setdefault("own encoder", OwnEncoder(setting.world.features, setting.world.bias))

    def update(self, batch: EvalBatch) -> None:
        assert batch.truth is not None, "needs_truth"
        self.n_tokens += len(batch.x)
        n_at_once = max(1, CELLS_AT_ONCE // len(self.best))
        fired, true = batch.f.to_dense() != 0, batch.truth > 0
        for rows in torch.arange(len(batch.x), device=batch.x.device).split(n_at_once):
            group = batch.document[rows] % self.counts.shape[1]
            of_latents, of_features = fired[rows], true[rows][:, self.best]
            for count, found in zip(self.counts, (of_latents & of_features, of_latents, of_features), strict=True):
                count.index_add_(0, group, found.double())
        if self.own.n_tokens < self.n_tokens:  # the first SAE of a batch
            self.own.count(batch.x, true)

    def finish(self) -> Result:
        total = self.counts.sum(1)
        without = total[:, None] - self.counts  # a group
        found = detection(*total)
        jackknifed = [of.mean(1).cpu().numpy() for of in detection(*without)]
        scores = {
            name: Score(float(of.mean()), jackknife_stderr(np.asarray(left)), self.n_tokens)
            for name, of, left in zip(found._fields, found, jackknifed, strict=True)
        }
        scores["mcc"] = Score(self.mcc, 0.0, 0)  # of weights alone: nothing was sampled
        scores["uniqueness"] = Score(unique_share(self.best), 0.0, 0)
        both, fired, true = (count.long().tolist() for count in total)
        per_latent: dict[str, list[float] | list[int]] = {
            "feature": self.best.tolist(), "together": both, "fired": fired, "feature_fired": true,
        }  # fmt: skip
        return Result(scores, per_latent=per_latent, details={"ceiling": self.own.best(len(self.best))})
