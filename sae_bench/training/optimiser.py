"""Adam as a recipe has it, on data of our scale: learning rates of biases, eps, and clipping of the gradient.

SAEs are trained on data with E||x||^2 = 1; a recipe may be written for data with E||x||^2 = d_in (`Recipe.data_norm`).
Data s times as large have the same SAE with biases and thresholds s times as large; matrices, scales and logarithms
stay. Its loss is s^2 times as large, if an L1 coefficient is s times as large, hence its gradient s^2 times in what
stays and s times in biases and thresholds. `factor` and `unit` of a parameter convert by that: an SAE is trained as it
would be on the recipe's own data, exactly.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_bench.saes.base import SparseAutoencoder
from sae_bench.training.recipe import Recipe


def adam(sae: SparseAutoencoder, recipe: Recipe) -> torch.optim.Adam:
    """The optimiser of an SAE's parameters, each in a group of its own, matrices first."""
    matrices_first = sorted(sae.parameters(), key=lambda parameter: parameter.ndim <= 1)
    groups = [_group(parameter, sae, recipe) for parameter in matrices_first]
    return torch.optim.Adam(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def _group(parameter: nn.Parameter, sae: SparseAutoencoder, recipe: Recipe) -> dict[str, Any]:
    """A parameter, the `factor` on its learning rate, and the `unit` that takes its gradient to the recipe's data."""
    scale = recipe.data_scale(sae.config.d_in)
    grows_with_data = any(parameter is bias for bias in (sae.b_dec, *sae.biases()))
    factor = (1.0 if parameter.ndim > 1 else recipe.bias_lr) / (scale if grows_with_data else 1.0)
    unit = scale if grows_with_data else scale**2
    return {"params": [parameter], "factor": factor, "unit": unit, "eps": recipe.adam_eps / unit}


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter its learning rate, where that of the matrices is `lr`."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["factor"]


@torch.no_grad()
def clip_gradient(optimiser: torch.optim.Optimizer, bound: float) -> Float[Tensor, ""]:
    """Shrink the gradient in all parameters together to norm `bound` if it is longer; return the norm that it had.

    The norm is that on the recipe's data, and float32 as the gradients are. Where it is not finite, the gradients are
    useless, even if each of their numbers is finite.
    """
    gradients = [
        (parameter.grad, group["unit"])
        for group in optimiser.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    lengths = [unit * torch.linalg.vector_norm(gradient) for gradient, unit in gradients]
    norm = torch.stack(lengths).square().sum().sqrt()
    factor = (bound / norm).clamp(max=1.0)
    for gradient, _ in gradients:
        gradient.mul_(factor)
    return norm
