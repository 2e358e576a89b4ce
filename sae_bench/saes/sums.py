"""Lookups and sums of a layout whose gradients are written by hand: for time, for memory, and none for padding.

Shapes: B tokens, F = d_sae, P pairs.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_bench.saes.chunks import chunk_size


def lookup(parameter: Float[Tensor, " F"], latent: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
    """parameter[latent], differentiable."""
    return _apply(_Lookup, parameter, latent)


def sum_per_token(values: Float[Tensor, "B F"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, " B"]:
    """(values * mask).sum(1), differentiable."""
    return _apply(_SumPerToken, values, mask)


def sum_per_latent(values: Float[Tensor, "B F"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, " F"]:
    """values.sum(0) of values that are zero outside the mask, differentiable."""
    return _apply(_SumPerLatent, values, mask)


def _apply(function: type[torch.autograd.Function], *arguments: Tensor) -> Tensor:
    found: Tensor = function.apply(*arguments)
    return found


class _Lookup(torch.autograd.Function):
    """parameter[latent]; its backward is one accumulation instead of indexing's general scatter."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, latent: Tensor) -> Tensor:
        ctx.save_for_backward(latent)
        ctx.n_latents = len(parameter)
        return parameter[latent]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (latent,) = ctx.saved_tensors
        return grad.new_zeros(ctx.n_latents).index_add_(0, latent, grad), None


class _SumPerToken(torch.autograd.Function):
    """(values * mask).sum(1) without that product in memory."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        size = chunk_size(mask.shape[1], mask.device)
        parts = zip(values.split(size), mask.split(size), strict=True)
        return torch.cat([kept.to(some.dtype).mul_(some).sum(1) for some, kept in parts])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return mask.to(grad.dtype).mul_(grad[:, None]), None


class _SumPerLatent(torch.autograd.Function):
    """values.sum(0) of clean values, with no gradient for padding."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return values.sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return mask.to(grad.dtype).mul_(grad), None
