"""JumpReLU SAE (Rajamanoharan et al. 2024b, arXiv 2407.14435): one threshold per latent, L0 optimised directly.

    z = ReLU((x - b_dec) W_enc + b_enc)
    f = z H(z - theta)
    loss = mean[ ||x - x_hat||^2 + lambda sum_i H(z_i - theta_i) ]          `--sparsity lambda`
    loss = mean||x - x_hat||^2 + lambda (L0 / L0_target - 1)^2              `--l0 target` (the paper's Eq. 13)

Both steps are flat almost everywhere, so theta learns through straight-through estimators: a rectangle kernel of width
eps (the bandwidth) turns the derivative of the mean loss into an average over the pairs with |z - theta| < eps / 2.
The superset z > theta - eps / 2 holds that whole window, hence the active set loses nothing. theta >= eps / 2 by
projection: below it the window would contain z = 0, that is every inactive latent of every token.
"""

import math
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_bench import (
    Active,
    Loss,
    Options,
    SAEConfig,
    SparseAutoencoder,
    Step,
    reconstruction_loss,
    register_architecture,
)


class JumpReLUOptions(Options):
    bandwidth: float = Field(default=1e-3, gt=0)
    theta_init: float | Literal["quantile"] = 1e-3
    """A value, or "quantile": per latent, the threshold that a sample of the data passes three times the target."""
    train_log_theta: bool = True
    """The paper's parametrisation theta = exp(log_theta); False trains theta itself."""


@register_architecture("jumprelu")
class JumpReLU(SparseAutoencoder):
    control = "target"
    options_type = JumpReLUOptions
    options: JumpReLUOptions
    saelens_architecture = "jumprelu"
    saelens_names: ClassVar[dict[str, str]] = {"theta_parameter": "threshold"}
    recipes: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        start = self.options.bandwidth if self.options.theta_init == "quantile" else self.options.theta_init
        theta = torch.full((config.d_sae,), max(start, self.least_theta))
        self.theta_parameter = nn.Parameter(theta.log() if self.options.train_log_theta else theta)

    @property
    def theta(self) -> Float[Tensor, "F"]:
        """The thresholds; the exp's chain factor is in the graph where log theta is trained."""
        in_logs = self.options.train_log_theta and not self.folded
        return self.theta_parameter.exp() if in_logs else self.theta_parameter

    @property
    def least_theta(self) -> float:
        return self.options.bandwidth / 2

    def initialise(self, x: Float[Tensor, "B D"]) -> None:
        if self.options.theta_init == "quantile":
            wanted = 3 * (self.config.l0 or 0.01 * self.config.d_sae)
            theta = upper_quantile(x - self.b_dec, self.W_enc, share=min(wanted / self.config.d_sae, 0.5))
            theta.clamp_(min=self.least_theta)
            self.theta_parameter.copy_(theta.log() if self.options.train_log_theta else theta)

    def after_step(self) -> None:
        least = math.log(self.least_theta) if self.options.train_log_theta else self.least_theta
        self.theta_parameter.clamp_(min=least)

    def biases(self) -> list[Float[Tensor, "F"]]:
        return [self.b_enc, self.theta_parameter]

    def fold(self, scale: float) -> Self:
        with torch.no_grad():
            self.theta_parameter.copy_(self.theta)
        return super().fold(scale)

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        return self.select(x, keep=lambda pre: pre > self.theta)  # theta > 0, so what passes is above zero too

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        theta, eps = self.theta, self.options.bandwidth
        z = self.select(x, keep=lambda pre: pre > theta.detach() - eps / 2)
        theta_of_pair = z.per_latent(theta)
        f = z.with_values(jump_relu(z.values, theta_of_pair, eps))
        x_hat = self.decode(f)
        error = reconstruction_loss(x, x_hat)
        l0 = z.sum_per_token(heaviside(z.values, theta_of_pair, eps))
        sparsity = l0 if self.config.l0 is None else (l0 / self.config.l0 - 1).square()
        return Loss(error + step.coefficient * sparsity, x_hat, f, {"reconstruction": error, "l0": l0})


def jump_relu(z: Float[Tensor, "P"], theta: Float[Tensor, "P"], eps: float) -> Float[Tensor, "P"]:
    """z H(z - theta), with the pseudo-derivative -(theta / eps) K((z - theta) / eps) for theta (Eq. 11)."""
    return _JumpReLU.apply(z, theta, eps)  # type: ignore[no-any-return, no-untyped-call]


def heaviside(z: Float[Tensor, "P"], theta: Float[Tensor, "P"], eps: float) -> Float[Tensor, "P"]:
    """H(z - theta), with the pseudo-derivative -(1 / eps) K((z - theta) / eps) for theta and none for z (Eq. 12)."""
    return _Heaviside.apply(z, theta, eps)  # type: ignore[no-any-return, no-untyped-call]


def _in_window(z: Tensor, theta: Tensor, eps: float) -> Tensor:
    """K((z - theta) / eps): the rectangle kernel."""
    return ((z - theta) / eps).abs() < 0.5


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, theta = ctx.saved_tensors
        return grad * (z > theta), -grad * (theta / ctx.eps) * _in_window(z, theta, ctx.eps), None


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        z, theta = ctx.saved_tensors
        return None, -grad / ctx.eps * _in_window(z, theta, ctx.eps), None


def upper_quantile(
    x: Float[Tensor, "B D"], W_enc: Float[Tensor, "D F"], share: float, latents_at_once: int = 4096
) -> Float[Tensor, "F"]:
    """Per latent, the value of x W_enc that the given share of the tokens exceeds."""
    n_above = max(1, round(share * len(x)))
    blocks = W_enc.split(latents_at_once, dim=1)
    return torch.cat([(x @ block).topk(n_above, dim=0, sorted=False).values.amin(0) for block in blocks])
