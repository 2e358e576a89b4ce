"""Adam as a recipe has it, on data of our scale: learning rates of biases, eps, and clipping of the gradient.

SAEs are trained on data with E||x||^2 = 1; a recipe may be written for data with E||x||^2 = d_in (`Recipe.data_norm`).
Data s times as large have the same SAE with biases and thresholds s times as large; matrices, scales and logarithms
stay. Its loss is s^2 times as large, if an L1 coefficient is s times as large, hence its gradient s^2 times in what
stays and s times in biases and thresholds. `factor` and `unit` of a parameter convert by that: an SAE is trained as it
would be on the recipe's own data, exactly.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.layouts import kernels_for
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
def tidy(
    optimiser: torch.optim.Adam, sae: SparseAutoencoder, bound: float | None
) -> tuple[Float[Tensor, ""] | None, Float[Tensor, ""] | None]:
    """Take out of W_dec's gradient what would only change the norm of rows that keep it, and clip all gradients.

    The norm that they had together on the recipe's data, and what `descend` has to multiply them with so that it is no
    more than `bound`; None without one. Where the norm is not finite the gradients are useless, even if each of their
    numbers is finite. On a GPU `descend` does the first in its one pass over the gradients, too.
    """
    if sae.unit_norm_decoder and sae.W_dec.grad is not None and not _in_one_pass(sae.W_dec, sae):
        sae.project_gradient()
    if bound is None:
        return None, None
    lengths = [group["unit"] * _length(of, gradient, sae) for group, of, gradient in _with_gradients(optimiser)]
    norm = torch.stack(lengths).square().sum().sqrt()
    return norm, (bound / norm).clamp(max=1.0)


@torch.no_grad()
def descend(
    optimiser: torch.optim.Adam, sae: SparseAutoencoder, factor: Float[Tensor, ""] | None, usable: Bool[Tensor, ""]
) -> None:
    """One step with gradients that are tidy, after which W_dec's rows have norm one; none if not `usable`."""
    for group, parameter, _ in _with_gradients(optimiser):
        if _in_one_pass(parameter, sae):
            from sae_bench.training import triton_adam

            state, unit_norm = optimiser.state[parameter], _keeps_norm(parameter, sae)
            times = torch.ones_like(usable, dtype=torch.float32) if factor is None else factor
            triton_adam.step(group, state, times, usable.float(), unit_norm=unit_norm)
    # The fused optimiser looks at these two before it moves a weight; loss scaling uses it in the same way.
    optimiser.found_inf = (~usable).float()  # type: ignore[attr-defined]
    optimiser.grad_scale = None if factor is None else (1 / factor).float()  # type: ignore[attr-defined]
    optimiser.step()
    if sae.unit_norm_decoder and sae.W_dec.grad is not None and not _in_one_pass(sae.W_dec, sae):
        sae.renormalise()


def _with_gradients(optimiser: torch.optim.Optimizer) -> list[tuple[dict[str, Any], nn.Parameter, Tensor]]:
    """Groups, each of one parameter, with the gradients of those that have one."""
    groups = [(group, group["params"][0]) for group in optimiser.param_groups]
    return [(group, parameter, parameter.grad) for group, parameter in groups if parameter.grad is not None]


def _length(parameter: nn.Parameter, gradient: Tensor, sae: SparseAutoencoder) -> Float[Tensor, ""]:
    """The norm of a parameter's gradient once it is tidy."""
    length: Tensor
    if not _in_one_pass(parameter, sae):
        length = torch.linalg.vector_norm(gradient)
        return length
    from sae_bench.training import triton_adam

    length = triton_adam.gradient_norm(parameter, unit_norm=_keeps_norm(parameter, sae))
    return length


def _keeps_norm(parameter: nn.Parameter, sae: SparseAutoencoder) -> bool:
    return sae.unit_norm_decoder and parameter is sae.W_dec


def _in_one_pass(parameter: nn.Parameter, sae: SparseAutoencoder) -> bool:
    """Whether a kernel of ours takes the whole step: a matrix's on a GPU, if what keeps its norm is rows of memory."""
    if parameter.ndim != 2 or kernels_for(parameter.device) is None:
        return False
    return parameter.is_contiguous() or not _keeps_norm(parameter, sae)
