"""JumpReLU SAE (Rajamanoharan et al. 2024b, arXiv 2407.14435): one threshold per latent, L0 optimised directly.

    z = ReLU((x - b_dec) W_enc + b_enc)
    f = z H(z - theta)
    loss = mean[ ||x - x_hat||^2 + lambda S ],  T the target of `--l0`, w_i the share of tokens with z_i > theta_i

    penalty = "l0"           S = L0(x) with `--sparsity lambda`, sum_i H(z_i - theta_i);
                             (L0(x) / T - 1)^2 with `--l0 T`; (mean L0 / T - 1)^2 with l0_penalty_per = "batch" besides
    penalty = "quadratic"    S = (2 / T) (L0(x) - T)^2, as in Gemma Scope 2 and SAELens
    frequency_scale = w_0    S has sum_i w_i^2 / w_0 more; with `--l0 T`, at the T latents that it is to have
    penalty = "tanh"         S = sum_i tanh(c f_i ||W_dec,i||), and l_P sum_i ReLU(theta_i - z_i) ||W_dec,i|| more

Per token is how the paper writes the target-L0 penalty (Eq. 13 of its ICLR version): inside the loss of one token. It
also holds the spread of L0 over tokens down, which the penalty on the batch's mean leaves free; dictionary_learning
(trainers/jumprelu.py) takes that mean. For one token, or tokens that are all equally sparse, the two are the same.

Gemma Scope 2 says that it penalises frequent latents, but we know no public source of the formula: w_i^2 / w_0 is that
of the same team's progress update of March 2025, which switches from linear to quadratic at the frequency w_0. As it
stands it pulls L0 below T; so where there is a T it is multiplied by (T / mean L0)^2, and only says which latents fire.

"tanh" is Anthropic's (Circuits Updates, January 2025): z without ReLU and pre-encoder bias, decoder rows free, and the
pseudo-derivative passes to z. l_P brings the dead back. Its term lives where z < theta, on nearly all pairs, yet costs
no more than the active ones: ReLU(theta - z) = theta - z + ReLU(z - theta), whose first part needs the mean of x alone.
SAELens takes it over dead latents only: `pre_act_on`.

Both steps are flat almost everywhere, so theta learns through straight-through estimators: a rectangle kernel of width
eps (the bandwidth) turns the derivative of the mean loss into an average over the pairs with |z - theta| < eps / 2.
The superset z > theta - eps / 2 holds that whole window, hence the active set loses nothing. theta >= eps / 2 by
projection: below it the window would contain z = 0, that is every inactive latent of every token. "tanh" has no ReLU
that gathers them there, and theta >= 0 alone; at its own bandwidth the window holds so much that the set is a matrix.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_bench import (
    Above,
    Active,
    Knob,
    Loss,
    Options,
    SAEConfig,
    SparseAutoencoder,
    Step,
    heaviside,
    jump_relu,
    reconstruction_loss,
    register_architecture,
    upper_quantile,
)

Penalty = Literal["l0", "quadratic", "tanh"]


class JumpReLUOptions(Options):
    bandwidth: float = Field(default=1e-3, gt=0)
    theta_init: float | Literal["quantile"] = 1e-3
    """A value, or "quantile": per latent, the one that all latents start with firing equally often at."""
    train_log_theta: bool = True
    """The paper's parametrisation theta = exp(log_theta); False trains theta itself."""
    dead_relaxation: float = Field(default=1.0, gt=0, le=1)
    """What the thresholds of dead latents are multiplied by at each step while they are listed; 1: left alone."""
    penalty: Penalty = "l0"
    l0_penalty_per: Literal["token", "batch"] = "token"
    """Whether the penalty (L0 / target - 1)^2 is of each token's L0, then averaged, or of the batch's mean L0."""
    frequency_scale: float | None = Field(default=None, gt=0)
    """The frequency from which latents are penalised for being frequent; None: none are. Not for "tanh"."""
    tanh_scale: float = Field(default=4.0, gt=0)
    pre_act_coeff: float = Field(default=3e-6, ge=0)
    pre_act_on: Literal["all", "dead"] = "all"
    init: Literal["shared", "anthropic"] = "shared"
    """"anthropic": decoder rows of norm 1 / sqrt(3), which U(-1, 1) / sqrt(d_in) has, W_enc = d_in / d_sae W_dec^T."""
    data_norm: Literal["unit", "sqrt_d_in"] = "unit"
    """The norm of the data that bandwidth, theta_init, tanh_scale and pre_act_coeff are for; as the recipe's."""


RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "l0": {
        "short": {
            "bandwidth": 3e-3, "theta_init": "quantile", "train_log_theta": False, "dead_relaxation": 0.95,
            "b_enc_init": "zeros", "l0_penalty_per": "batch",
        },
    },
    "quadratic": {
        "short": {
            "bandwidth": 3e-3, "theta_init": "quantile", "train_log_theta": False, "dead_relaxation": 0.95,
            "b_enc_init": "zeros", "l0_penalty": 1.5e-3,
        },
    },
    "tanh": {
        # "Dictionary Learning Optimization Techniques"; b_enc lets each latent fire on 10,000 in d_sae tokens.
        "paper": {
            "bandwidth": 2.0, "theta_init": 0.1, "init": "anthropic", "b_enc_init": "quantile",
            "data_norm": "sqrt_d_in", "lr": 2e-4, "betas": (0.9, 0.999), "lr_warmup": 0, "lr_decay": 0.2,
            "grad_clip": 1.0, "sparsity_warmup": 1.0, "controller_until": 1.0,
        },
        "short": {
            "bandwidth": 3e-3, "theta_init": "quantile", "train_log_theta": False, "dead_relaxation": 0.95,
            "b_enc_init": "zeros", "tanh_scale": 100.0, "controller_start": 5e-5,
        },
    },
}  # fmt: skip


@register_architecture("jumprelu")
class JumpReLU(SparseAutoencoder):
    version = "2"  # 1: the penalty was taken on the batch mean alone
    options_type = JumpReLUOptions
    options: JumpReLUOptions
    nonlinearity = "jumprelu"
    stored_names: ClassVar[dict[str, str]] = {"theta_parameter": "threshold"}
    recipes = RECIPES["l0"]
    # The penalty decides how near to the wanted L0 it stays; its unit is another with penalty="quadratic".
    knobs: ClassVar[dict[str, Knob]] = {"bandwidth": Knob(1e-3, 1e-2), "l0_penalty": Knob(0.3, 30, relative=True)}

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        options = self.options
        self.tanh = options.penalty == "tanh"
        self.scale = math.sqrt(config.d_in) if options.data_norm == "sqrt_d_in" else 1.0
        self.eps = options.bandwidth / self.scale
        self.least_theta = 0.0 if self.tanh else self.eps / 2
        start = self.eps if options.theta_init == "quantile" else options.theta_init / self.scale
        theta = torch.full((config.d_sae,), max(start, self.least_theta))
        self.theta_parameter = nn.Parameter(theta.log() if options.train_log_theta else theta)
        if options.init == "anthropic":
            with torch.no_grad():
                self.W_dec.div_(math.sqrt(3))
                self.W_enc.mul_(config.d_in / config.d_sae / math.sqrt(3))

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        if config.options.get("penalty") == "quadratic" and config.l0 is None:
            raise ValueError("penalty=quadratic is about a wanted L0: give --l0, not --sparsity")
        if config.options.get("penalty") == "tanh" and config.options.get("frequency_scale") is not None:
            raise ValueError("penalty=tanh has no penalty on frequent latents: leave frequency_scale out")

    @classmethod
    def departures(cls, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return RECIPES.get(settings.get("penalty", "l0"), {}).get(preset, {})

    @property
    def control(self) -> Literal["target", "coefficient"]:
        return "coefficient" if self.options.penalty == "tanh" else "target"

    @property
    def pre_encoder_bias(self) -> bool:
        return not self.folded and not self.tanh

    @property
    def unit_norm_decoder(self) -> bool:
        return not self.tanh

    @property
    def theta(self) -> Float[Tensor, " F"]:
        """The thresholds; the exp's chain factor is in the graph where log theta is trained."""
        return self.theta_parameter.exp() if self.theta_in_logs else self.theta_parameter

    @property
    def theta_in_logs(self) -> bool:
        return self.options.train_log_theta and not self.folded

    @property
    def starting_density(self) -> float:
        if self.options.init == "anthropic":
            return min(10_000 / self.config.d_sae, 0.5)
        return super().starting_density

    def initialise(self, x: Float[Tensor, "B D"]) -> None:
        if self.tanh:
            self.b_enc.sub_(self.b_dec @ self.W_enc)  # nothing else centres the data where b_dec starts at their mean
        if self.options.init == "anthropic":
            self.b_enc.add_(self.theta)  # from which quantiles are taken off then
        if self.options.theta_init == "quantile":
            theta = upper_quantile(x - self.b_dec, self.W_enc, self.starting_density)
            theta.clamp_(min=max(self.least_theta, self.eps / 1000))
            self.theta_parameter.copy_(theta.log() if self.options.train_log_theta else theta)

    def after_step(self, step: Step) -> None:
        in_logs, relax = self.options.train_log_theta, self.options.dead_relaxation
        if relax < 1 and len(step.dead):
            dead = self.theta_parameter[step.dead]
            self.theta_parameter[step.dead] = dead + math.log(relax) if in_logs else dead * relax
        if not in_logs:
            self.theta_parameter.clamp_(min=self.least_theta)
        elif self.least_theta > 0:
            self.theta_parameter.clamp_(min=math.log(self.least_theta))

    def biases(self) -> list[Float[Tensor, " F"]]:
        return [self.b_enc] if self.theta_in_logs else [self.b_enc, self.theta_parameter]

    def fold(self, scale: float) -> "SparseAutoencoder":
        with torch.no_grad():
            self.theta_parameter.copy_(self.theta)
        return super().fold(scale)

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        return self.select(x, Above(self.theta))  # theta >= 0, so what passes is above zero too

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        theta, eps = self.theta, self.eps
        z = self.select(x, Above(theta.detach() - eps / 2))
        theta_of_pair = z.per_latent(theta)
        f = z.with_values(jump_relu(z.values, theta_of_pair, eps, to_z=self.tanh), zero_at_zero=True)
        if self.tanh:
            return self._tanh_loss(x, z, theta, f, step)
        x_hat = self.decode(f)
        error = reconstruction_loss(x, x_hat)
        gate = z.with_values(heaviside(z.values, theta_of_pair, eps), zero_at_zero=True)
        l0 = gate.sum_of_each_token(gate.values)
        total = error + step.coefficient * self._sparsity(l0, gate, step.survey)
        return Loss(total, x_hat, f, {"reconstruction": error, "l0": l0.mean()})

    def survey(self, parts: Sequence[Tensor]) -> Sequence[Float[Tensor, " F"]] | None:
        """On which share of a batch each latent is active."""
        per_batch = self.options.penalty == "l0" and self.options.l0_penalty_per == "batch"
        if not (per_batch and self.config.l0 is not None) and self.options.frequency_scale is None:
            return None
        counts = torch.stack([self.encode(part).count_per_latent()[0] for part in parts])
        return [counts.sum(0) / sum(map(len, parts))] * len(parts)

    def _sparsity(
        self, l0: Float[Tensor, " B"], gate: Active, batch_frequency: Float[Tensor, " F"] | None
    ) -> Float[Tensor, ""]:
        target, mean, scale = self.config.l0, l0.mean(), self.options.frequency_scale
        if target is None:
            penalty = mean
        elif self.options.penalty == "quadratic":
            penalty = (2 / target) * (l0 - target).square().mean()
        elif self.options.l0_penalty_per == "token":
            penalty = (l0 / target - 1).square().mean()
        else:
            whole = None if batch_frequency is None else batch_frequency.sum()
            penalty = (_of_batch(mean, whole) / target - 1).square()
        if scale is not None:
            frequency = _of_batch(gate.mean_per_latent(), batch_frequency)
            spread = frequency.square().sum() / scale
            if target is not None:
                spread = spread * (target / frequency.sum().clamp(min=target / 100)).square()
            penalty = penalty + spread
        return penalty

    def _tanh_loss(self, x: Float[Tensor, "B D"], z: Active, theta: Float[Tensor, " F"], f: Active, step: Step) -> Loss:
        norms = torch.linalg.vector_norm(self.W_dec, dim=1)
        excess = z.with_values(torch.relu(z.values - z.per_latent(theta))).mean_per_latent()
        below = norms * (theta - (x.mean(0) @ self.W_enc + self.b_enc) + excess)  # mean ReLU(theta - z), of all tokens
        pre_act = below.sum() if self.options.pre_act_on == "all" else below[step.dead].sum()
        c = self.options.tanh_scale * self.scale
        sparsity = f.sum_per_token(torch.tanh(c * f.values * f.per_latent(norms)))
        x_hat = self.decode(f)
        error = reconstruction_loss(x, x_hat)
        total = error + step.coefficient * sparsity + self.options.pre_act_coeff / self.scale * pre_act
        return Loss(total, x_hat, f, {"reconstruction": error, "tanh": sparsity, "pre_act": pre_act})


def _of_batch(part: Tensor, whole: Tensor | None) -> Tensor:
    """The whole batch's value where it is known; its gradient is the mean of its parts'."""
    return part if whole is None else part + (whole - part).detach()
