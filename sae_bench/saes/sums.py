"""Sums of a layout whose gradients are written by hand: for time, for memory, and none for padding.

Shapes: B tokens, F = d_sae.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_bench.saes.chunks import chunk_size


class _SumPerToken(torch.autograd.Function):
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
    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return values.sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return mask.to(grad.dtype).mul_(grad), None


Sum = Callable[[Tensor, Tensor], Tensor]
"""Of values [B, F] and a mask [B, F]; differentiable."""

sum_per_token: Sum = _SumPerToken.apply
"""(values * mask).sum(1), [B], without that product in memory."""

sum_per_latent: Sum = _SumPerLatent.apply
"""values.sum(0), [F], of values that are zero outside the mask."""
