"""SAEs in float64, small and away from where they start, to be held against their formulas.

Shapes: B tokens, D = d_in, F = d_sae.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from twins import (
    Parameters,
    assert_twins_agree_on,
)

from sae_bench import ARCHITECTURES, SAEConfig, SparseAutoencoder, Step

B, D, F = 29, 5, 16


def build(name: str, *, l0: float | None = 3.0, coefficient: float | None = None, d_in: int = D, **options: Any) -> Any:
    return ARCHITECTURES[name](
        SAEConfig(d_in=d_in, d_sae=F, l0=l0, coefficient=coefficient, seed=7, options=options)
    ).double()


def randomise(sae: SparseAutoencoder, **scale: float) -> SparseAutoencoder:
    """Move every parameter away from where it starts, as training does: nothing is zero, one, tied or of norm one."""
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.add_(scale.get(name, 0.3) * noise)
    return sae


def activations(n: int = B, d_in: int = D) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(n, d_in, generator=draw, dtype=torch.float64) + 2


def assert_twins_agree(sae: SparseAutoencoder, twin: Callable[[Parameters, Tensor], Tensor], when: Step) -> None:
    assert_twins_agree_on(activations(), sae, twin, when)


def build_jumprelu(theta: float, spread: float = 0.2, **options: Any) -> Any:
    """A jumprelu SAE in general position, its thresholds in theta * (1 .. 1 + spread)."""
    sae = randomise(build("jumprelu", **options), theta_parameter=0.0)
    values = theta * (1 + spread * torch.rand(F, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    with torch.no_grad():
        sae.theta_parameter.copy_(values.log() if sae.options.train_log_theta else values)
    return sae


def sae_with_l0s(*l0s: int, **options: Any) -> tuple[Any, Tensor]:
    """An SAE of target L0 2 that reproduces its input, and tokens with so many latents on; theta is 0.5."""
    sae = build("jumprelu", l0=2.0, d_in=F, theta_init=0.5, train_log_theta=False, **options)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(F))
        sae.W_dec.copy_(torch.eye(F))
    return sae, torch.stack([(torch.arange(F) < n).double() for n in l0s])
