"""Matching pursuit SAE (Costa et al. 2025, arXiv 2506.03093): a tied encoder that explains what is left, atom by atom.

    r = x - b_dec, f = 0, and k times:  j = argmax_i r . d_i,  v = ReLU(r . d_j),  f_j += v,  r -= v d_j
    loss = mean||x - x_hat||^2 = mean||r||^2            d_i: the rows of W_dec, of norm one, and all there is

An atom that is taken twice adds up, so L0 <= k. The gradient runs through the whole recurrence, as in the authors' code
(KempnerInstitute/overcomplete) and in SAELens; which atom is taken has none. The authors' code has no ReLU: where no
atom points along r it would take a negative v, as SAELens and we do not.

SAELens leaves the rows' norms free after they start at one, and stops a token early: where ||r|| falls below
`residual_threshold`, and with `stop_on_duplicate_support` where a step takes an atom that it has already. Both are
options here, off by default, with which the same SAE computes the same.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_bench import (
    Active,
    Knob,
    Loss,
    Options,
    SAEConfig,
    SparseAutoencoder,
    Step,
    check_whole_k,
    pursue,
    reconstruction_loss,
    register_architecture,
)


class MatchingPursuitOptions(Options):
    residual_threshold: float = Field(default=0.0, ge=0)
    """Where ||r|| is less a token stops; 0: nowhere. On the scale of what the SAE takes: folding multiplies it."""
    stop_on_duplicate_support: bool = False
    """Whether a token stops behind a step that takes no further atom."""


@register_architecture("matching_pursuit")
class MatchingPursuit(SparseAutoencoder):
    control = "k"
    tied = True
    pre_encoder_bias = True
    options_type = MatchingPursuitOptions
    options: MatchingPursuitOptions
    nonlinearity = "matching_pursuit"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {"short": {"b_enc_init": "zeros", "lr": 8e-3}}
    knobs: ClassVar[dict[str, Knob]] = {"bias_lr": Knob(0.03, 1.0), "grad_clip": Knob(2e-3, 5e-2)}

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        check_whole_k(config)

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        least, stop = self.options.residual_threshold, self.options.stop_on_duplicate_support
        return pursue(x - self.b_dec, self.W_dec, int(self.config.sparsity), least, stop_at_repeat=stop)

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        f = self.encode(x)
        x_hat = self.decode(f)
        error = reconstruction_loss(x, x_hat)
        return Loss(error, x_hat, f, {"reconstruction": error})

    def fold(self, scale: float) -> SparseAutoencoder:
        options = {**self.config.options, "residual_threshold": self.options.residual_threshold * scale}
        self.config = self.config.model_copy(update={"options": options})
        self.options = MatchingPursuitOptions(**options)
        return super().fold(scale)
