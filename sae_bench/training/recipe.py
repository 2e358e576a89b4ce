"""How an SAE is optimised, and the two presets of it.

`paper` is the shared training recipe of the JumpReLU paper (arXiv 2407.14435) and Gemma Scope (arXiv 2408.05147),
exactly; its constants assume two million steps. `short` trains in hundreds to thousands of steps; every departure is
explained in docs/presets.md with what was measured.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Preset = Literal["paper", "short"]


class Recipe(BaseModel):
    """How one SAE is optimised. Warm-ups up to 1, and `dead_after` below 1, are fractions of the run.

    SAEs are trained on data with E||x||^2 = 1. `data_norm` says which data the recipe is written for; those of its
    constants that depend on it (`adam_eps`, `grad_clip`, the learning rate of biases and thresholds) are converted to
    ours. Sparsity coefficients are not, nor an architecture's options: they are for E||x||^2 = 1
    unless `data_norm` is one of them, as jumprelu's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_norm: Literal["unit", "sqrt_d_in"] = "unit"
    """Norm of the data that the recipe is written for: E||x||^2 = 1, or E||x||^2 = d_in as Anthropic scale them."""
    lr: float = Field(gt=0)
    bias_lr: float = Field(gt=0)
    """Factor on the learning rate of everything that is not a matrix: biases, thresholds, scales.

    Biases and thresholds are as large as the data: for `data_norm` sqrt(d_in) theirs is divided by sqrt(d_in) besides.
    """
    betas: tuple[float, float]
    adam_eps: float = Field(gt=0)
    lr_warmup: float = Field(ge=0)
    lr_warmup_shape: Literal["cosine", "linear"]
    lr_decay: float = Field(ge=0, le=1)
    """Fraction of the run, at its end, over which the learning rate goes linearly to zero."""
    sparsity_warmup: float = Field(ge=0)
    grad_clip: float | None = Field(gt=0)
    """Bound on the norm of the gradient in all parameters, for data of the norm `data_norm`; None: no clipping."""
    b_dec_init: Literal["zeros", "mean", "geometric_median"]
    b_enc_init: Literal["zeros", "quantile"]
    """"quantile": every latent starts by firing on the same share of the data, START_OVER times the wanted L0."""
    dead_after: float = Field(gt=0)
    """A latent that has not fired for this many tokens is dead."""
    l0_penalty: float = Field(gt=0)
    """Coefficient of (L0 / target - 1)^2, for architectures with control = "target"."""
    controller_start: float = Field(gt=0)
    """First sparsity coefficient of an architecture whose coefficient is adapted to reach an L0."""
    controller_rate: float = Field(gt=0)
    controller_until: float = Field(gt=0, le=1)

    def data_scale(self, d_in: int) -> float:
        """What data with E||x||^2 = 1 are multiplied by to have the norm that the recipe is written for."""
        return math.sqrt(d_in) if self.data_norm == "sqrt_d_in" else 1.0


_SHARED: dict[Preset, dict[str, Any]] = {
    "paper": {
        "lr": 7e-5, "bias_lr": 1.0, "betas": (0.0, 0.999), "adam_eps": 1e-8, "lr_warmup": 1000,
        "lr_warmup_shape": "cosine", "lr_decay": 0.0, "sparsity_warmup": 10_000, "grad_clip": None,
        "b_dec_init": "zeros", "b_enc_init": "zeros", "dead_after": 10_000_000,
        "l0_penalty": 1.0, "controller_start": 1e-5, "controller_rate": 1e-3, "controller_until": 0.5,
    },
    "short": {
        "lr": 4e-3, "bias_lr": 0.1, "betas": (0.9, 0.999), "adam_eps": 1e-8, "lr_warmup": 0.05,
        "lr_warmup_shape": "linear", "lr_decay": 0.2, "sparsity_warmup": 0.05, "grad_clip": 0.01,
        "b_dec_init": "mean", "b_enc_init": "quantile", "dead_after": 0.05,
        "l0_penalty": 0.1, "controller_start": 5e-3, "controller_rate": 0.03, "controller_until": 0.95,
    },
}  # fmt: skip


def recipe_for(preset: Preset, departures: Mapping[str, Any]) -> Recipe:
    """The preset's shared recipe with an architecture's, or a user's, departures from it."""
    return Recipe(**{**_SHARED[preset], **departures})
