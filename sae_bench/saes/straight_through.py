"""The JumpReLU and the Heaviside step with pseudo-derivatives, by which thresholds learn (arXiv 2407.14435, Section 4).

A rectangle kernel K of width eps, the bandwidth, turns the derivative of the mean loss into an average over the pairs
with |z - theta| < eps / 2. The paper gives it to theta alone; Anthropic (Circuits Updates, January 2025) lets it pass
to z as well, as the negative of theta's, for where they jump both steps depend on z - theta: `to_z`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def jump_relu(
    z: Float[Tensor, "..."], theta: Float[Tensor, "..."], eps: float, *, to_z: bool = False
) -> Float[Tensor, "..."]:
    """z H(z - theta), with the pseudo-derivative -(theta / eps) K((z - theta) / eps) for theta (Eq. 11)."""
    return _JumpReLU.apply(z, theta, eps, to_z)  # type: ignore[no-any-return, no-untyped-call]


def heaviside(z: Float[Tensor, "..."], theta: Float[Tensor, "..."], eps: float) -> Float[Tensor, "..."]:
    """H(z - theta), with the pseudo-derivative -(1 / eps) K((z - theta) / eps) for theta and none for z (Eq. 12)."""
    return _Heaviside.apply(z, theta, eps)  # type: ignore[no-any-return, no-untyped-call]


def _in_window(z: Tensor, theta: Tensor, eps: float) -> Tensor:
    """K((z - theta) / eps): the rectangle kernel."""
    return (z - theta).div_(eps).abs_() < 0.5  # in place: on large sets, what costs is memory


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, eps: float, to_z: bool) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.eps, ctx.to_z = eps, to_z
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, theta = ctx.saved_tensors
        of_theta = _in_window(z, theta, ctx.eps).to(grad.dtype).mul_(grad).mul_(-theta / ctx.eps)
        of_z = (z > theta).to(grad.dtype).mul_(grad)
        return of_z.sub_(of_theta) if ctx.to_z else of_z, of_theta, None, None


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        z, theta = ctx.saved_tensors
        return None, _in_window(z, theta, ctx.eps).to(grad.dtype).mul_(grad).div_(-ctx.eps), None
