"""JumpReLU SAE (Rajamanoharan et al. 2024b, arXiv 2407.14435): one threshold per latent, L0 optimised directly.

    z = ReLU((x - b_dec) W_enc + b_enc)
    f = z H(z - theta)
    loss = mean[ ||x - x_hat||^2 + lambda sum_i H(z_i - theta_i) ]          `--sparsity lambda`
    loss = mean[ ||x - x_hat||^2 + lambda (L0(x) / target - 1)^2 ]          `--l0 target`, l0_penalty_per = "token"
    loss = mean||x - x_hat||^2 + lambda (mean L0(x) / target - 1)^2         `--l0 target`, l0_penalty_per = "batch"

Per token is how the paper writes the target-L0 penalty (Eq. 13 of its ICLR version): inside the loss of one token. It
also holds the spread of L0 over tokens down, which the penalty on the batch's mean leaves free; dictionary_learning
(trainers/jumprelu.py) takes that mean. For one token, or tokens that are all equally sparse, the two are the same.

Both steps are flat almost everywhere, so theta learns through straight-through estimators: a rectangle kernel of width
eps (the bandwidth) turns the derivative of the mean loss into an average over the pairs with |z - theta| < eps / 2.
The superset z > theta - eps / 2 holds that whole window, hence the active set loses nothing. theta >= eps / 2 by
projection: below it the window would contain z = 0, that is every inactive latent of every token.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_bench import (
    Above,
    Active,
    Loss,
    Options,
    SAEConfig,
    SparseAutoencoder,
    Step,
    reconstruction_loss,
    register_architecture,
    upper_quantile,
)


class JumpReLUOptions(Options):
    bandwidth: float = Field(default=1e-3, gt=0)
    theta_init: float | Literal["quantile"] = 1e-3
    """A value, or "quantile": per latent, the one that all latents start with firing equally often at."""
    train_log_theta: bool = True
    """The paper's parametrisation theta = exp(log_theta); False trains theta itself."""
    dead_relaxation: float = Field(default=1.0, gt=0, le=1)
    """What the thresholds of dead latents are multiplied by at each step while they are listed; 1: left alone."""
    l0_penalty_per: Literal["token", "batch"] = "token"
    """Whether the penalty (L0 / target - 1)^2 is of each token's L0, then averaged, or of the batch's mean L0."""


@register_architecture("jumprelu")
class JumpReLU(SparseAutoencoder):
    version = "2"  # 1: the penalty was taken on the batch mean alone
    control = "target"
    options_type = JumpReLUOptions
    options: JumpReLUOptions
    nonlinearity = "jumprelu"
    stored_names: ClassVar[dict[str, str]] = {"theta_parameter": "threshold"}
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "short": {
            "bandwidth": 3e-3, "theta_init": "quantile", "train_log_theta": False, "dead_relaxation": 0.95,
            "b_enc_init": "zeros", "l0_penalty_per": "batch",
        },
    }  # fmt: skip

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        start = self.options.bandwidth if self.options.theta_init == "quantile" else self.options.theta_init
        theta = torch.full((config.d_sae,), max(start, self.least_theta))
        self.theta_parameter = nn.Parameter(theta.log() if self.options.train_log_theta else theta)

    @property
    def theta(self) -> Float[Tensor, " F"]:
        """The thresholds; the exp's chain factor is in the graph where log theta is trained."""
        return self.theta_parameter.exp() if self.theta_in_logs else self.theta_parameter

    @property
    def theta_in_logs(self) -> bool:
        return self.options.train_log_theta and not self.folded

    @property
    def least_theta(self) -> float:
        return self.options.bandwidth / 2

    def initialise(self, x: Float[Tensor, "B D"]) -> None:
        if self.options.theta_init == "quantile":
            theta = upper_quantile(x - self.b_dec, self.W_enc, self.starting_density)
            theta.clamp_(min=self.least_theta)
            self.theta_parameter.copy_(theta.log() if self.options.train_log_theta else theta)

    def after_step(self, step: Step) -> None:
        in_logs, relax = self.options.train_log_theta, self.options.dead_relaxation
        if relax < 1 and len(step.dead):
            dead = self.theta_parameter[step.dead]
            self.theta_parameter[step.dead] = dead + math.log(relax) if in_logs else dead * relax
        self.theta_parameter.clamp_(min=math.log(self.least_theta) if in_logs else self.least_theta)

    def biases(self) -> list[Float[Tensor, " F"]]:
        return [self.b_enc] if self.theta_in_logs else [self.b_enc, self.theta_parameter]

    def fold(self, scale: float) -> "SparseAutoencoder":
        with torch.no_grad():
            self.theta_parameter.copy_(self.theta)
        return super().fold(scale)

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        return self.select(x, Above(self.theta))  # theta > 0, so what passes is above zero too

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        theta, eps = self.theta, self.options.bandwidth
        z = self.select(x, Above(theta.detach() - eps / 2))
        theta_of_pair = z.per_latent(theta)
        f = z.with_values(jump_relu(z.values, theta_of_pair, eps), zero_at_zero=True)
        x_hat = self.decode(f)
        error = reconstruction_loss(x, x_hat)
        l0 = z.sum_of_each_token(heaviside(z.values, theta_of_pair, eps))
        total = error + step.coefficient * self._sparsity(l0, step.survey)
        return Loss(total, x_hat, f, {"reconstruction": error, "l0": l0.mean()})

    def survey(self, parts: Sequence[Tensor]) -> Sequence[Float[Tensor, ""]] | None:
        if self.config.l0 is None or self.options.l0_penalty_per == "token":
            return None
        l0 = torch.cat([self.encode(part).active_per_token() for part in parts]).float().mean()
        return [l0] * len(parts)

    def _sparsity(self, l0: Float[Tensor, " B"], batch_l0: Float[Tensor, ""] | None) -> Float[Tensor, ""]:
        target, mean = self.config.l0, l0.mean()
        if target is None:
            return mean
        if self.options.l0_penalty_per == "token":
            return (l0 / target - 1).square().mean()
        if batch_l0 is not None:
            mean = mean + (batch_l0 - mean).detach()  # the batch's value; its gradient is the mean of its parts'
        return (mean / target - 1).square()


def jump_relu(z: Float[Tensor, "..."], theta: Float[Tensor, "..."], eps: float) -> Float[Tensor, "..."]:
    """z H(z - theta), with the pseudo-derivative -(theta / eps) K((z - theta) / eps) for theta (Eq. 11)."""
    return _JumpReLU.apply(z, theta, eps)  # type: ignore[no-any-return, no-untyped-call]


def heaviside(z: Float[Tensor, "..."], theta: Float[Tensor, "..."], eps: float) -> Float[Tensor, "..."]:
    """H(z - theta), with the pseudo-derivative -(1 / eps) K((z - theta) / eps) for theta and none for z (Eq. 12)."""
    return _Heaviside.apply(z, theta, eps)  # type: ignore[no-any-return, no-untyped-call]


def _in_window(z: Tensor, theta: Tensor, eps: float) -> Tensor:
    """K((z - theta) / eps): the rectangle kernel."""
    return (z - theta).div_(eps).abs_() < 0.5  # in place: on large sets, what costs is memory


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, theta = ctx.saved_tensors
        of_theta = _in_window(z, theta, ctx.eps).to(grad.dtype).mul_(grad).mul_(-theta / ctx.eps)
        return (z > theta).to(grad.dtype).mul_(grad), of_theta, None


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
