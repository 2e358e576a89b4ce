"""The dense twin of our step: the same losses in plain torch, dense products and ordinary autograd.

It starts from the very weights that ours starts from, with the same fused Adam, gradient projection and
renormalisation, and counts nothing at all, so it is as cheap as a dense step gets. AuxK of topk is idle, as it is in
ours.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from workers.ours import Ours
from workers.protocol import Spec, group_sizes, serve_steps

COEFFICIENT = 1e-3


class Dense:
    """An SAE as four to seven tensors; with `autocast` its products are in bfloat16."""

    def __init__(self, x: Tensor, spec: Spec, *, autocast: bool = False) -> None:
        ours = Ours(x, spec)
        self.spec, self.autocast = spec, autocast
        self.eps = getattr(ours.sae.options, "bandwidth", 0.0)
        self.unit_norm = ours.sae.unit_norm_decoder
        parameters = {
            name: nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format))
            for name, value in ours.sae.named_parameters()
        }
        self.p = SimpleNamespace(**parameters)
        groups = [[p for p in parameters.values() if (p.ndim > 1) == matrices] for matrices in (True, False)]
        recipe = ours.trainer.recipe
        self.optimiser = torch.optim.Adam(
            [{"params": group} for group in groups], lr=1e-7, betas=recipe.betas, eps=recipe.adam_eps, fused=True
        )

    def step(self, x: Tensor) -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            loss, _ = getattr(self, self.spec.arch)(x)
        self.optimiser.zero_grad()
        loss.backward()
        W_dec = self.p.W_dec
        with torch.no_grad():
            if self.unit_norm:
                W_dec.grad.addcmul_(W_dec, torch.linalg.vecdot(W_dec.grad, W_dec)[:, None], value=-1.0)
            self.optimiser.step()
            if self.unit_norm:
                W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
            if self.spec.arch == "jumprelu":
                self.p.theta_parameter.clamp_(min=self.eps / 2)

    def l0(self, x: Tensor) -> float:
        _, f = getattr(self, self.spec.arch)(x)
        return float((f > 0).sum(1).float().mean())

    def relu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.p
        f = torch.relu(torch.addmm(p.b_enc, x, p.W_enc))
        l1 = (f * torch.linalg.vector_norm(p.W_dec, dim=1)).sum(1).mean()
        return error(x, torch.addmm(p.b_dec, f, p.W_dec)) + COEFFICIENT * l1, f

    def gated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.p
        pi = (x - p.b_dec) @ p.W_enc
        gate = torch.relu(pi + p.b_enc)
        f = (gate > 0) * torch.relu(p.r_mag.exp() * pi + p.b_mag)
        auxiliary = error(x, torch.addmm(p.b_dec.detach(), gate, p.W_dec.detach()))
        return error(x, torch.addmm(p.b_dec, f, p.W_dec)) + COEFFICIENT * gate.sum(1).mean() + auxiliary, f

    def topk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.p
        z = torch.addmm(p.b_enc, x - p.b_dec, p.W_enc)
        largest = z.topk(round(self.spec.l0), dim=1, sorted=False)
        f = torch.zeros_like(z).scatter(1, largest.indices, torch.relu(largest.values))
        return error(x, torch.addmm(p.b_dec, f, p.W_dec)), f

    def batchtopk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self._batch_top_k(x)
        return error(x, torch.addmm(self.p.b_dec, f, self.p.W_dec)), f

    def matryoshka(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f, x_hat, errors = self._batch_top_k(x), self.p.b_dec, []
        sizes = group_sizes(self.spec.d_sae)
        for some, W in zip(f.split(sizes, dim=1), self.p.W_dec.split(sizes), strict=True):
            x_hat = x_hat + some @ W
            errors.append(error(x, x_hat))
        return torch.stack(errors).mean(), f

    def _batch_top_k(self, x: Tensor) -> Tensor:
        p = self.p
        z = torch.addmm(p.b_enc, x - p.b_dec, p.W_enc)
        largest = z.flatten().topk(round(self.spec.l0) * len(x), sorted=False)
        f = torch.zeros_like(z).flatten().scatter(0, largest.indices, torch.relu(largest.values))
        return f.view_as(z)

    def jumprelu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.p
        z = torch.addmm(p.b_enc, x - p.b_dec, p.W_enc)
        f = jump_relu(z, p.theta_parameter, self.eps)
        l0 = heaviside(z, p.theta_parameter, self.eps).sum(1).mean()
        return error(x, torch.addmm(p.b_dec, f, p.W_dec)) + COEFFICIENT * (l0 / self.spec.l0 - 1).square(), f


def error(x: Tensor, x_hat: Tensor) -> Tensor:
    return (x - x_hat).square().sum(1).mean()


def in_window(z: Tensor, theta: Tensor, eps: float) -> Tensor:
    return ((z - theta) / eps).abs() < 0.5


class JumpReLU(torch.autograd.Function):
    """z H(z - theta), theta's gradient by the straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, theta = ctx.saved_tensors
        return grad * (z > theta), -(theta / ctx.eps) * (in_window(z, theta, ctx.eps) * grad).sum(0), None


class Heaviside(torch.autograd.Function):
    """H(z - theta), likewise, with no gradient for z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        z, theta = ctx.saved_tensors
        return None, -(in_window(z, theta, ctx.eps) * grad).sum(0) / ctx.eps, None


jump_relu: Callable[[Tensor, Tensor, float], Tensor] = JumpReLU.apply
heaviside: Callable[[Tensor, Tensor, float], Tensor] = Heaviside.apply


if __name__ == "__main__":
    serve_steps(Dense, ["torch"])
