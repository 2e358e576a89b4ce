"""How learning rate and sparsity coefficient move over a run, as functions of the step alone."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.parsing import n_steps_in


def lr_factor(step: int, n_steps: int, *, warmup: float, shape: Literal["cosine", "linear"], decay: float) -> float:
    """What the learning rate is multiplied by at `step` (from 0).

    Warm-up: cosine from 0.1 (the JumpReLU paper) or linear from 0, over `warmup` steps or fraction of the run. Then
    constant, then linear to zero over the last `decay` of the run.
    """
    n_warmup, n_decay = n_steps_in(warmup, n_steps), round(decay * n_steps)
    factor = 1.0
    if step < n_warmup:
        done = step / n_warmup
        factor = 0.1 + 0.9 * (1 - math.cos(math.pi * done)) / 2 if shape == "cosine" else (step + 1) / n_warmup
    if step >= n_steps - n_decay:
        factor *= (n_steps - step) / n_decay
    return factor


def sparsity_factor(step: int, n_steps: int, warmup: float) -> float:
    """Linear from 0 to 1 over the warm-up."""
    n_warmup = n_steps_in(warmup, n_steps)
    return min(1.0, step / n_warmup) if n_warmup else 1.0


PROPORTIONAL_GAIN = 0.5
"""How far log(coefficient) is pushed at once for an error of log(L0 / target) = 1."""


class CoefficientController:
    """Finds the sparsity coefficient at which a wanted L0 is reached, then lets go.

    During the first `until` of the run the logarithm of the coefficient follows log(L0 / target), clipped, as a
    proportional-integral controller: the integral finds the level, the proportional part damps the overshoot that comes
    of L0 answering late. After that it is frozen at the mean integral of its last tenth, so that training ends on a
    fixed objective. It starts low: a coefficient that begins too high kills the gate of a gated SAE before the
    controller can react.
    State lives on the SAE's device; nothing here waits for it.
    """

    def __init__(self, target: float, *, start: float, rate: float, until: float, n_steps: int, device: torch.device):
        self.target, self.rate = target, rate
        self.n_adapting = int(until * n_steps)
        self._averaged_from = int(0.9 * self.n_adapting)
        self._integral = torch.tensor(math.log(start), device=device)
        self._proportional = torch.zeros((), device=device)
        self._sum = torch.zeros((), device=device)
        self._n_summed = 0

    @property
    def coefficient(self) -> Float[Tensor, ""]:
        return (self._integral + self._proportional).exp()

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves, for a checkpoint."""
        return {
            "integral": self._integral,
            "proportional": self._proportional,
            "sum": self._sum,
            "n_summed": self._n_summed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        device, self._n_summed = self._integral.device, state["n_summed"]
        self._integral, self._proportional, self._sum = (
            state[name].to(device) for name in ("integral", "proportional", "sum")
        )

    def update(self, step: int, l0: Float[Tensor, ""]) -> None:
        """Take in the L0 measured at `step`."""
        if step >= self.n_adapting:
            return
        error = (l0.clamp(min=1e-3) / self.target).log().clamp(-1.0, 1.0)
        self._integral = self._integral + self.rate * error
        self._proportional = PROPORTIONAL_GAIN * error
        if step >= self._averaged_from:
            self._sum, self._n_summed = self._sum + self._integral, self._n_summed + 1
        if step == self.n_adapting - 1:
            self._integral = self._sum / self._n_summed
            self._sum, self._n_summed = torch.zeros_like(self._sum), 0  # a training that is extended sums anew
            self._proportional = torch.zeros_like(self._proportional)
