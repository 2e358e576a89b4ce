"""jumprelu's other penalties against their formulas, written out densely in float64; autograd does the rest.

Shapes: B tokens, D = d_in, F = d_sae.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from float64_saes import F, activations, assert_twins_agree, build, build_jumprelu, sae_with_l0s
from torch import Tensor
from twins import quadratic_twin, step, tanh_twin

from sae_bench import ARCHITECTURES, SAEConfig, jump_relu
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.testing import check_architecture
from sae_bench.training.schedules import sparsity_factor


@pytest.mark.parametrize(
    "options",
    [
        {"penalty": "quadratic"},
        {"penalty": "quadratic", "frequency_scale": 0.1},
        {"penalty": "tanh", "bandwidth": 0.1, "theta_init": 0.05},
        {"penalty": "tanh", "train_log_theta": False, "theta_init": "quantile", "pre_act_on": "dead"},
        settle(ArchSpec(name="jumprelu", settings={"penalty": "tanh"}), "paper")[0],
    ],
    ids=str,
)
def test_it_keeps_the_contract(options: dict[str, Any]) -> None:
    check_architecture("jumprelu", **options)


# --- quadratic, and frequent latents ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("theta", [0.8, 0.21], ids=["far from eps / 2", "just above eps / 2"])
def test_quadratic_equals_its_dense_twin(theta: float, scale: float | None) -> None:
    options = {"penalty": "quadratic", "frequency_scale": scale, "bandwidth": 0.4, "train_log_theta": False}
    assert_twins_agree(build_jumprelu(theta, **options), quadratic_twin(0.4, 3.0, scale), step())


def test_the_quadratic_penalty_by_hand() -> None:
    """L0s of 1, 3, 0 and 6 at target 2: (2 / 2) (L0 - 2)^2 is 1, 1, 4 and 16."""
    sae, x = sae_with_l0s(1, 3, 0, 6, penalty="quadratic")
    assert sae.loss(x, step(0.3)).total.item() == pytest.approx(0.3 * 22 / 4)


def test_the_penalty_on_frequent_latents_by_hand() -> None:
    """On L0s of 1, 3, 0 and 6, latents fire on 3, 2, 2, 1, 1 and 1 of 4 tokens: squares add up to 20 / 16.

    The mean L0 is 2.5 and the target 2: times (2 / 2.5)^2. Twice as many tokens without a latent change nothing in it.
    """
    sae, x = sae_with_l0s(1, 3, 0, 6, penalty="quadratic", frequency_scale=0.5)
    assert sae.loss(x, step(0.3)).total.item() == pytest.approx(0.3 * (22 / 4 + 20 / 16 / 0.5 * 0.64))
    sae, x = sae_with_l0s(1, 3, 0, 6, 0, 0, 0, 0, penalty="quadratic", frequency_scale=0.5)
    assert sae.loss(x, step(0.3)).total.item() == pytest.approx(0.3 * ((22 + 16) / 8 + 20 / 16 / 0.5 * 0.64))


def test_without_a_target_frequent_latents_cost_what_the_progress_update_says() -> None:
    """L0 and the mean squared frequency: sum_i w_i (1 + w_i / w_0)."""
    sae, x = sae_with_l0s(1, 3, 0, 6, frequency_scale=0.5)
    sae.config = sae.config.model_copy(update={"l0": None, "coefficient": 0.3})
    assert sae.loss(x, step(0.3)).total.item() == pytest.approx(0.3 * (10 / 4 + 20 / 16 / 0.5))


def test_the_frequency_of_a_batch_is_known_to_its_parts() -> None:
    """Losses and gradients of two parts, each told the whole batch's frequencies, make those of the batch."""
    sae = build_jumprelu(0.8, penalty="quadratic", frequency_scale=0.2, bandwidth=0.4, train_log_theta=False)
    x = activations(30)
    whole = torch.autograd.grad(sae.loss(x, step()).total, sae.theta_parameter)[0]
    with torch.no_grad():
        told = [replace(step(), survey=found) for found in sae.survey(x.split(10))]
    parts = [sae.loss(part, at).total / 3 for part, at in zip(x.split(10), told, strict=True)]
    torch.testing.assert_close(torch.autograd.grad(sum(parts), sae.theta_parameter)[0], whole)
    untold = [sae.loss(part, step()).total / 3 for part in x.split(10)]
    assert not torch.allclose(torch.autograd.grad(sum(untold), sae.theta_parameter)[0], whole)


def test_quadratic_needs_a_target() -> None:
    config = SAEConfig(d_in=5, d_sae=F, coefficient=1.0, options={"penalty": "quadratic"})
    with pytest.raises(ValueError, match="give --l0"):
        ARCHITECTURES["jumprelu"].check(config)


def test_tanh_refuses_what_it_would_not_use() -> None:
    config = SAEConfig(d_in=4, d_sae=8, l0=2, options={"penalty": "tanh", "frequency_scale": 0.1})
    with pytest.raises(ValueError, match="leave frequency_scale out"):
        ARCHITECTURES["jumprelu"].check(config)


# --- tanh -------------------------------------------------------------------------------------------------------


def tanh_sae(theta: float, **options: Any) -> Any:
    return build_jumprelu(theta, penalty="tanh", pre_act_coeff=0.05, tanh_scale=1.5, **options)


@pytest.mark.parametrize("log", [True, False], ids=["log theta", "theta"])
@pytest.mark.parametrize("eps", [0.4, 4.0], ids=["a narrow window", "a window that holds nearly all pairs"])
def test_tanh_equals_its_dense_twin(eps: float, log: bool) -> None:
    """Every gradient, the pre-activation term's on all pairs included."""
    sae = tanh_sae(0.8, bandwidth=eps, train_log_theta=log)
    assert_twins_agree(sae, tanh_twin(eps, 1.5, 0.05, log=log), step())


def test_the_pre_activation_term_of_dead_latents_equals_its_dense_twin() -> None:
    """As SAELens has it."""
    sae = tanh_sae(0.8, bandwidth=0.4, pre_act_on="dead")
    assert_twins_agree(sae, tanh_twin(0.4, 1.5, 0.05, log=True, dead=(2, 7)), step(dead=(2, 7)))


def test_the_pre_activation_term_reaches_latents_that_never_fire() -> None:
    """Below theta on all tokens: d / d b_enc is -l_P ||W_dec||, d / d theta is l_P ||W_dec||, and nothing else is."""
    sae = tanh_sae(0.8, bandwidth=0.4, train_log_theta=False)
    with torch.no_grad():
        sae.b_enc[3] = -1e3
    sae.loss(activations(), step()).total.backward()
    norm = sae.W_dec[3].norm().item()
    assert sae.b_enc.grad[3].item() == pytest.approx(-0.05 * norm)
    assert sae.theta_parameter.grad[3].item() == pytest.approx(0.05 * norm)


def test_the_pseudo_derivative_passes_to_z() -> None:
    """theta = .5, eps = .1, in the window .52 and .48: theta / eps = 5 to z, -5 to theta, besides H to z."""
    z = torch.tensor([0.10, 0.52, 0.48, 1.00], requires_grad=True)
    theta = torch.full((4,), 0.5, requires_grad=True)
    dz, dtheta = torch.autograd.grad(jump_relu(z, theta, 0.1, to_z=True).sum(), [z, theta])
    torch.testing.assert_close(dz, torch.tensor([0.0, 6, 5, 1]))
    torch.testing.assert_close(dtheta, torch.tensor([0.0, -5, -5, 0]))


def test_the_mean_pseudo_gradient_of_the_bias_is_the_gradient_of_the_mean_loss() -> None:
    """One latent, z = x + b with x ~ N(0, 1): d / db of E[(x - f)^2] by central differences, within five errors.

    f jumps at x = theta - b. Without the pseudo-derivative for z the mean gradient would lack the jump's part.
    """
    n, theta, b, eps = 1_000_000, 0.8, 0.3, 0.05
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"penalty": "tanh", "bandwidth": eps, "train_log_theta": False, "theta_init": theta, "pre_act_coeff": 0.0}
    sae: Any = ARCHITECTURES["jumprelu"](SAEConfig(d_in=1, d_sae=1, coefficient=1.0, options=options)).double()
    with torch.no_grad():
        sae.W_enc.fill_(1)
        sae.W_dec.fill_(1)
        sae.b_enc.fill_(b)
    sae.loss(x, step(0.0)).total.backward()

    def exact(bias: float) -> float:
        """E[x^2; x < c] + bias^2 P(x > c), c = theta - bias."""
        c = theta - bias
        below, density = 0.5 * (1 + math.erf(c / math.sqrt(2))), math.exp(-(c**2) / 2) / math.sqrt(2 * math.pi)
        return below - c * density + bias**2 * (1 - below)

    h = 1e-4
    slope = (exact(b + h) - exact(b - h)) / (2 * h)
    c = theta - b
    density = math.exp(-(c**2) / 2) / math.sqrt(2 * math.pi)
    largest = 2 * theta / eps * max(c, b)  # what a token in the window adds; the kernel's width moves the mean, too
    width = eps / 4 * theta * density * (1 + theta * c)
    tolerance = 5 * (largest * math.sqrt(eps * density / n) + 2 * b / math.sqrt(n)) + width
    without_jump = 2 * b * 0.5 * (1 - math.erf(c / math.sqrt(2)))
    assert abs(slope - without_jump) > 2 * tolerance
    assert sae.b_enc.grad.item() == pytest.approx(slope, abs=tolerance)


def on_their_data(scale: float, x: Tensor, sae: Any, lambda_S: float) -> Tensor:
    """The update's loss as it is printed, on data of norm sqrt(d_in), with c = 4 and l_P = 3e-6: biases grow alike."""
    x, b_enc, b_dec, theta = scale * x, scale * sae.b_enc, scale * sae.b_dec, scale * sae.theta
    z = x @ sae.W_enc + b_enc
    f, norms = z * (z > theta), sae.W_dec.norm(dim=1)
    sparsity = lambda_S * torch.tanh(4 * f * norms).sum(1) + 3e-6 * (torch.relu(theta - z) * norms).sum(1)
    return ((x - f @ sae.W_dec - b_dec).square().sum(1) + sparsity).mean()


def test_the_paper_recipe_is_the_updates_on_data_of_its_norm() -> None:
    """With E||x||^2 = 1 the loss is 1 / d_in of theirs, lambda being 1 / d_in of theirs too; the start is theirs."""
    options, recipe = settle(ArchSpec(name="jumprelu", settings={"penalty": "tanh"}), "paper")
    sae: Any = ARCHITECTURES["jumprelu"](SAEConfig(d_in=16, d_sae=64, coefficient=1.0, options=options)).double()
    assert sae.eps * 4 == 2.0
    torch.testing.assert_close(4 * sae.theta, torch.full_like(sae.theta, 0.1), rtol=1e-6, atol=0)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full_like(sae.theta, 3**-0.5), rtol=1e-6, atol=0)
    torch.testing.assert_close(sae.W_enc, 16 / 64 * sae.W_dec.T)
    x = activations(40, 16) / 16
    ours, theirs = sae.loss(x, step(5.0 / 16)).total, on_their_data(4.0, x, sae, 5.0)
    torch.testing.assert_close(ours, theirs / 16, rtol=1e-6, atol=0)
    assert (recipe.lr, recipe.betas, recipe.lr_decay, recipe.grad_clip) == (2e-4, (0.9, 0.999), 0.2, 1.0)
    assert [sparsity_factor(at, 1000, recipe.sparsity_warmup) for at in (0, 500, 999)] == [0, 0.5, 0.999]
    assert recipe.data_norm == options["data_norm"] == "sqrt_d_in"


def test_the_update_starts_with_every_latent_on_10000_in_d_sae_tokens() -> None:
    config = SAEConfig(d_in=5, d_sae=40_000, coefficient=1.0, options={"penalty": "tanh", "init": "anthropic"})
    assert ARCHITECTURES["jumprelu"](config).starting_density == 0.25


def test_only_tanh_is_controlled_by_its_coefficient() -> None:
    assert build("jumprelu", penalty="tanh").control == "coefficient"
    assert build("jumprelu", penalty="quadratic").control == "target"
