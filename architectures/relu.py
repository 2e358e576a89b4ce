"""Vanilla ReLU SAE with an L1 penalty weighted by decoder norms (Anthropic, "Circuits updates - April 2024").

    f = ReLU(x W_enc + b_enc)                       no pre-encoder bias, decoder rows unconstrained
    loss = mean[ ||x - x_hat||^2 + lambda sum_i f_i ||W_dec,i|| ]

Their data are scaled to E||x|| = sqrt(d_in), ours to E||x||^2 = 1: their lambda is sqrt(d_in) times ours, their biases
are sqrt(d_in) times ours and move as many times as far; the recipe `paper` says so by its `data_norm`.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_bench import (
    Above,
    Active,
    Knob,
    Loss,
    Options,
    SAEConfig,
    SparseAutoencoder,
    Step,
    reconstruction_loss,
    register_architecture,
)


class ReLUOptions(Options):
    decoder_init_norm: float = Field(default=0.1, gt=0)


@register_architecture("relu")
class ReLU(SparseAutoencoder):
    options_type = ReLUOptions
    options: ReLUOptions
    nonlinearity = "relu"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "lr": 5e-5, "betas": (0.9, 0.999), "lr_warmup": 0, "lr_decay": 0.2,
            "sparsity_warmup": 0.05, "grad_clip": 1.0, "data_norm": "sqrt_d_in",
        },
        "short": {"decoder_init_norm": 1.0, "lr": 8e-3},
    }  # fmt: skip
    knobs: ClassVar[dict[str, Knob]] = {"decoder_init_norm": Knob(0.3, 3.0), "controller_rate": Knob(0.01, 0.12)}

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        with torch.no_grad():
            self.W_dec.mul_(self.options.decoder_init_norm)
            self.W_enc.mul_(self.options.decoder_init_norm)

    pre_encoder_bias = False
    unit_norm_decoder = False

    def initialise(self, x: Float[Tensor, "B D"]) -> None:
        # Without a pre-encoder bias, b_enc centres the data where b_dec starts at its mean.
        self.b_enc.sub_(self.b_dec @ self.W_enc)

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        return self.select(x, Above(0.0))  # z is f: nothing else is kept

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        f = self.encode(x)
        l1 = (f.mean_per_latent() * torch.linalg.vector_norm(self.W_dec, dim=1)).sum()
        x_hat = self.decode(f)
        error = reconstruction_loss(x, x_hat)
        return Loss(error + step.coefficient * l1, x_hat, f, {"reconstruction": error, "l1": l1})
