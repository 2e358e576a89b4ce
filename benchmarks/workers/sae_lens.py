"""SAELens's training step: `SAETrainer.step`, its public seam, and what `fit` does around it.

Its step always clips the gradient's norm and always keeps its sparsity statistics. L0 is set by b_enc, which leaves the
cost of a dense step as it is. Its topk is dense by default; `kernels="sparse"` is its option `use_sparse_activations`,
which on a CPU fails in the backward pass unless the rescaling by decoder norms, on by default, is off.
"""

from itertools import accumulate
from typing import Any

import torch
from sae_lens import (  # type: ignore[import-not-found]
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig  # type: ignore[import-not-found]
from sae_lens.training.sae_trainer import SAETrainer  # type: ignore[import-not-found]
from torch import Tensor

from workers.protocol import BY_K, LR, N_STEPS, Spec, group_sizes, serve_steps, upper_quantile

CLASSES: dict[str, tuple[Any, Any]] = {
    "relu": (StandardTrainingSAE, StandardTrainingSAEConfig),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
}


class SAELens:
    """A training SAE and its trainer."""

    def __init__(self, x: Tensor, spec: Spec) -> None:
        sae_class, config_class = CLASSES[spec.arch]
        own: dict[str, Any] = {"k": round(spec.l0)} if spec.arch in BY_K else {}
        if spec.arch == "matryoshka":
            own["matryoshka_widths"] = [*accumulate(group_sizes(spec.d_sae))]
        if spec.kernels == "sparse":
            own |= {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
        self.sae = sae_class(config_class(d_in=x.shape[1], d_sae=spec.d_sae, **own))
        if spec.arch not in BY_K:
            threshold = self.sae.threshold.detach() if spec.arch == "jumprelu" else 0.0
            for bias in (self.sae.b_gate, self.sae.b_mag) if spec.arch == "gated" else (self.sae.b_enc,):
                bias.data.copy_(threshold - upper_quantile(x, self.sae.W_enc, spec.share))
        config = SAETrainerConfig(
            total_training_samples=N_STEPS * spec.batch, train_batch_size_samples=spec.batch, lr=LR, lr_end=LR
        )
        self.trainer = SAETrainer(config, self.sae, data_provider=iter(()))

    def step(self, x: Tensor) -> None:
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def l0(self, x: Tensor) -> float:
        return float((self.sae.encode(x).to_dense() > 0).sum(1).float().mean())


if __name__ == "__main__":
    torch.manual_seed(0)
    serve_steps(SAELens, ["sae-lens", "torch"])
