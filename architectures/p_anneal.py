"""ReLU SAE with p-annealing (Karvonen et al. 2024, arXiv 2408.00113): from an L1 penalty towards one on L0.

    f = ReLU((x - b_dec) W_enc + b_enc)             decoder rows of norm one
    loss = mean[ ||x - x_hat||^2 + lambda alpha sum_i f_i^p ]

p is 1 up to `anneal_start`, then goes down to `p_end` in equal steps, the last at `anneal_end`. At each, alpha, which
begins at 1, is multiplied by sum f^p / sum f^p' of the latest batches, so that the penalty is as large under the new p'
as it was under p. With `--l0` lambda is adapted besides.

The penalty is the p-norm's p-th power, as the paper's; dictionary_learning has the norm itself by default. Its p never
reaches p_end, the last step being at the end of the run: `anneal_end` = 1 is the same. A value below the smallest
normal number has no gradient: that of f^p has no bound near 0.
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
    n_steps_in,
    reconstruction_loss,
    register_architecture,
)

UNSEEN = -1.0
"""Stands for the penalty of a batch that is still to come."""


class PAnnealOptions(Options):
    p_end: float = Field(default=0.2, gt=0, le=1)
    n_levels: int = Field(default=10, ge=2)
    """Values that p takes, 1 and p_end included."""
    anneal_start: float = Field(default=10_000, ge=0)
    """Steps, or share of the run, before p changes."""
    anneal_end: float = Field(default=1.0, gt=0, le=1)
    """Share of the run after which p has its last value."""
    n_recent: int = Field(default=10, gt=0)
    """Batches over which penalties are averaged to rescale lambda."""


@register_architecture("p_anneal")
class PAnneal(SparseAutoencoder):
    options_type = PAnnealOptions
    options: PAnnealOptions
    nonlinearity = "relu"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # The authors' scripts for chess (github.com/adamkarvonen/SAE_BoardGameEval), which have no sparsity warm-up;
        # that is the default of dictionary_learning's trainer, which came later.
        "paper": {
            "lr": 3e-4, "betas": (0.9, 0.999), "lr_warmup_shape": "linear", "sparsity_warmup": 2000,
        },
        "short": {"anneal_start": 0.05, "anneal_end": 0.4, "controller_rate": 0.06},
    }  # fmt: skip
    knobs: ClassVar[dict[str, Knob]] = {"p_end": Knob(0.1, 0.6), "controller_rate": Knob(0.01, 0.12)}

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.register_buffer("alpha", torch.ones((), dtype=torch.float64))
        self.register_buffer("recent", torch.full((self.options.n_recent, 2), UNSEEN, dtype=torch.float64))
        self.alpha: Float[Tensor, ""]
        self.recent: Float[Tensor, "n_recent 2"]
        """Mean penalties of the latest batches under p and under the next p."""

    def level(self, number: int, n_steps: int) -> int:
        """How many steps p has gone down before training step `number`, which follows the one at which it goes."""
        start, span, n_falls = self._way_down(n_steps)
        return min(max(-(-(number - start) * n_falls // span) - 1, 0), n_falls)

    def level_below(self, level: int, n_steps: int) -> int:
        """The next level that p has: one step down, or several in one where there are fewer steps than levels."""
        start, span, n_falls = self._way_down(n_steps)
        return self.level(start + (level + 1) * span // n_falls + 1, n_steps)

    def _way_down(self, n_steps: int) -> tuple[int, int, int]:
        """The training step behind which p begins to go down, in how many it has done so, and how often it goes."""
        start = n_steps_in(self.options.anneal_start, n_steps)
        return start, max(1, round(self.options.anneal_end * n_steps) - start), self.options.n_levels - 1

    def p(self, level: int) -> float:
        return 1 - (1 - self.options.p_end) * level / (self.options.n_levels - 1)

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        return self.select(x, Above(0.0))  # z is f: nothing else is kept

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        f, level = self.encode(x), self.level(step.number, step.n_steps)
        penalty = mean_power(f, self.p(level))
        with torch.no_grad():
            penalty_next = mean_power(f, self.p(self.level_below(level, step.n_steps)))
        x_hat = self.decode(f)
        error = reconstruction_loss(x, x_hat)
        total = error + step.coefficient * self.alpha.to(x.dtype) * penalty
        return Loss(total, x_hat, f, {"reconstruction": error, "penalty": penalty, "penalty_next": penalty_next})

    def after_step(self, step: Step) -> None:
        now = torch.stack([step.seen["penalty"], step.seen["penalty_next"]])
        self.recent[step.number % len(self.recent)] = now.double()
        if self.level(step.number + 1, step.n_steps) > self.level(step.number, step.n_steps):
            under_p, under_next = self.recent.clamp(min=0).sum(0)  # what is unseen adds nothing
            self.alpha.mul_((under_p / under_next).nan_to_num(1.0))  # 0 / 0 where nothing was active
            self.recent.fill_(UNSEEN)


def mean_power(f: Active, p: float) -> Float[Tensor, ""]:
    """Mean over tokens of sum_i f_i^p over the active latents."""
    tiny = torch.finfo(f.values.dtype).tiny  # padding is 0, where f^p has an infinite slope
    return f.sum_per_token(f.values.clamp(min=tiny).pow(p))
