"""Gated SAE (Rajamanoharan et al. 2024a, arXiv 2404.16014): one path decides whether a latent is on, one how much.

    pi = (x - b_dec) W_enc                          one matrix, weights tied by r_mag
    f = 1[pi + b_gate > 0] ReLU(exp(r_mag) pi + b_mag)
    loss = mean[ ||x - x_hat||^2 + lambda sum_i ReLU(pi + b_gate)_i
                 + ||x - (ReLU(pi + b_gate) W_dec + b_dec)_frozen||^2 ]

The auxiliary reconstruction trains the gate, which the step function cuts off from the first term; its decoder is
frozen, b_dec included. `penalty="ri_l1"` is the baseline of the JumpReLU paper (arXiv 2407.14435): the penalty
weighted by decoder norms, the decoder unconstrained, the auxiliary decoder not frozen. b_gate is the base's b_enc.
"""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_bench import (
    Above,
    Active,
    Knob,
    Loss,
    Options,
    SAEConfig,
    SparseAutoencoder,
    Step,
    decode,
    reconstruction_loss,
    register_architecture,
)


class GatedOptions(Options):
    penalty: Literal["l1", "ri_l1"] = "l1"


@register_architecture("gated")
class Gated(SparseAutoencoder):
    options_type = GatedOptions
    options: GatedOptions
    nonlinearity = "gated"
    stored_names: ClassVar[dict[str, str]] = {"b_enc": "b_gate"}
    recipes: ClassVar[dict[str, dict[str, Any]]] = {"short": {"lr": 8e-3}}
    knobs: ClassVar[dict[str, Knob]] = {"bias_lr": Knob(0.03, 1.0), "controller_rate": Knob(0.01, 0.12)}

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))

    @property
    def unit_norm_decoder(self) -> bool:
        return self.options.penalty == "l1"

    def biases(self) -> list[Float[Tensor, " F"]]:
        return [self.b_enc, self.b_mag]

    def shift_biases(self, shift: Float[Tensor, " F"]) -> None:
        self.b_enc.sub_(shift)
        self.b_mag.sub_(self.r_mag.exp() * shift)

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        return self._magnitudes(self._gate(x))

    def _gate(self, x: Float[Tensor, "B D"]) -> Active:
        """pi + b_gate where it is above zero, so that it equals its ReLU."""
        return self.select(x, Above(0.0))

    def _magnitudes(self, gate: Active) -> Active:
        # The gate's values carry b_gate; the step function passes no gradient, the shared pi does.
        pi = gate.values - gate.per_latent(self.b_enc)
        return gate.with_values(torch.relu(gate.per_latent(self.r_mag.exp()) * pi + gate.per_latent(self.b_mag)))

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        gate = self._gate(x)
        weights = torch.linalg.vector_norm(self.W_dec, dim=1) if self.options.penalty == "ri_l1" else None
        mean_gate = gate.mean_per_latent()
        sparsity = mean_gate.sum() if weights is None else (mean_gate * weights).sum()
        f = self._magnitudes(gate)
        x_hat = self.decode(f)
        error = reconstruction_loss(x, x_hat)
        if self.options.penalty == "l1":
            x_gate = decode(gate, self.W_dec.detach(), self.b_dec.detach())
        else:
            x_gate = self.decode(gate)
        auxiliary = reconstruction_loss(x, x_gate)
        total = error + step.coefficient * sparsity + auxiliary
        return Loss(total, x_hat, f, {"reconstruction": error, "l1": sparsity, "auxiliary": auxiliary})
