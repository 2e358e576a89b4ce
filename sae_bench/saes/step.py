"""What the trainer tells a loss about the moment, and what a loss returns.

Shapes: B tokens, D = d_in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.parsing import n_steps_in
from sae_bench.saes.active import Latents


@dataclass(frozen=True)
class Step:
    """What the trainer tells a loss about the moment, as tensors on the SAE's device."""

    coefficient: Float[Tensor, ""]
    """Sparsity coefficient lambda, warm-up and control included."""
    dead: Int[Tensor, " n_dead"]
    """Indices of the latents that have not fired for the recipe's number of tokens."""
    survey: Any = None
    """What `survey` has found of the whole batch for the part of it that the loss is shown; None: it sees all."""
    number: int = 0
    """Steps before this one."""
    n_steps: int = 1
    """Steps of the run."""
    seen: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """In `after_step`: what the loss gave of the whole batch as `terms` and as `minima`."""

    def is_past(self, warmup: float) -> bool:
        """Whether a warm-up is over that is given as a number of steps or, up to 1, as a share of the run."""
        return self.number >= n_steps_in(warmup, self.n_steps)


@dataclass(frozen=True)
class Loss:
    """What a loss returns: the scalar to descend, and what the trainer takes its statistics from."""

    total: Float[Tensor, ""]
    x_hat: Float[Tensor, "B D"]
    latents: Latents
    terms: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """The parts of `total`, before their coefficients, each a mean over tokens; logged."""
    minima: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """For `after_step`: numbers of which a batch's is the least of its parts'."""
