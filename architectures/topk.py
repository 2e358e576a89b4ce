"""TopK SAE (Gao et al. 2024, arXiv 2406.04093): the k largest pre-activations of a token, and nothing to tune.

    f = ReLU(top_k((x - b_dec) W_enc + b_enc))      so L0 <= k
    loss = mean||x - x_hat||^2 + aux_coeff * mean||e - e_hat||^2

AuxK: the error e = x - x_hat (no gradient) is reconstructed, without b_dec, from the k_aux largest dead latents, which
brings them back to life. Dead is for the trainer to say: no activation for the recipe's number of tokens.
"""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_bench import (
    Active,
    Largest,
    Loss,
    Options,
    SAEConfig,
    SparseAutoencoder,
    Step,
    decode,
    reconstruction_loss,
    register_architecture,
)


class TopKOptions(Options):
    aux_coeff: float = Field(default=1 / 32, ge=0)
    k_aux: int | None = Field(default=None, gt=0)
    """Dead latents a token may use; None: the power of two nearest d_in / 2."""


@register_architecture("topk")
class TopK(SparseAutoencoder):
    control = "k"
    options_type = TopKOptions
    options: TopKOptions
    nonlinearity = "topk"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"b_dec_init": "geometric_median", "dead_after": 10_000_000},
        "short": {"b_enc_init": "zeros"},
    }

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.k = int(config.sparsity)
        self.k_aux = self.options.k_aux or 2 ** round(math.log2(config.d_in / 2))

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        if config.sparsity != int(config.sparsity) or not 0 < config.sparsity <= config.d_sae:
            raise ValueError(f"k = {config.sparsity:g}: give a whole number from 1 to the width, {config.d_sae}")

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        return _rectified(self.select(x, Largest(self.k)))

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        if not len(step.dead) or self.options.aux_coeff == 0:
            f = self.encode(x)
            x_hat, auxiliary = self.decode(f), x.new_zeros(())
        else:
            rules = Largest(self.k), Largest(self.k_aux, among=step.dead)
            f, f_dead = map(_rectified, self.select_all(x, rules))
            x_hat = self.decode(f)
            auxiliary = reconstruction_loss((x - x_hat).detach(), decode(f_dead, self.W_dec))
        error = reconstruction_loss(x, x_hat)
        total = error + self.options.aux_coeff * auxiliary
        return Loss(total, x_hat, f, {"reconstruction": error, "aux_k": auxiliary})


def _rectified(z: Active) -> Active:
    return z.with_values(torch.relu(z.values))
