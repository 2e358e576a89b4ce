"""dictionary_learning's training step: `update` of its trainers.

For relu its `StandardTrainerAprilUpdate`, whose loss is that of ours (penalty weighted by decoder norms, decoder rows
free). Steps begin in mid-training, where topk and its kin estimate their inference threshold too. L0 is set by the
encoder's bias.
"""

from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # type: ignore[import-not-found]
from dictionary_learning.trainers.gdm import GatedSAETrainer  # type: ignore[import-not-found]
from dictionary_learning.trainers.jumprelu import JumpReluTrainer  # type: ignore[import-not-found]
from dictionary_learning.trainers.matryoshka_batch_top_k import (  # type: ignore[import-not-found]
    MatryoshkaBatchTopKTrainer,
)
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate  # type: ignore[import-not-found]
from dictionary_learning.trainers.top_k import TopKTrainer  # type: ignore[import-not-found]
from torch import Tensor

from workers.protocol import BY_K, LR, MID_TRAINING, N_STEPS, Spec, group_sizes, serve_steps, upper_quantile

TRAINERS: dict[str, Any] = {
    "relu": StandardTrainerAprilUpdate,
    "gated": GatedSAETrainer,
    "topk": TopKTrainer,
    "jumprelu": JumpReluTrainer,
    "batchtopk": BatchTopKTrainer,
    "matryoshka": MatryoshkaBatchTopKTrainer,
}
BY_BATCH = BatchTopKTrainer, MatryoshkaBatchTopKTrainer


class DictionaryLearning:
    """A trainer, which owns its dictionary."""

    def __init__(self, x: Tensor, spec: Spec) -> None:
        k, groups = round(spec.l0), [size / spec.d_sae for size in group_sizes(spec.d_sae)]
        options: dict[str, dict[str, Any]] = {
            "topk": {"k": k}, "jumprelu": {"target_l0": spec.l0}, "batchtopk": {"k": k},
            "matryoshka": {"k": k, "group_fractions": groups},
        }  # fmt: skip
        self.trainer = TRAINERS[spec.arch](
            steps=N_STEPS,
            activation_dim=x.shape[1],
            dict_size=spec.d_sae,
            layer=9,
            lm_name="",
            lr=LR,
            device="cpu",
            **options.get(spec.arch, {}),
        )
        self.ae, self.n_done = self.trainer.ae, MID_TRAINING
        if spec.arch == "jumprelu":
            self.ae.b_enc.data.copy_(self.ae.threshold.detach() - upper_quantile(x, self.ae.W_enc, spec.share))
        elif spec.arch not in BY_K:
            for bias in (self.ae.gate_bias, self.ae.mag_bias) if spec.arch == "gated" else (self.ae.encoder.bias,):
                bias.data.copy_(-upper_quantile(x, self.ae.encoder.weight.T, spec.share))

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.n_done, x)
        self.n_done += 1

    def l0(self, x: Tensor) -> float:
        of_training = {"use_threshold": False} if isinstance(self.trainer, BY_BATCH) else {}
        return float((self.ae.encode(x, **of_training) > 0).sum(1).float().mean())


if __name__ == "__main__":
    torch.manual_seed(0)
    serve_steps(DictionaryLearning, ["dictionary-learning", "torch"])
