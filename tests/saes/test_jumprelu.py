"""jumprelu against its formulas, written out densely in float64; pseudo-gradients against gradients of means."""

import math
import sys
from typing import Any

import pytest
import torch
from float64_saes import F, activations, assert_twins_agree, build, build_jumprelu, sae_with_l0s
from twins import (
    LAMBDA,
    jumprelu_twin,
    step,
)

from sae_bench import ARCHITECTURES, SAEConfig
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.saes.base import START_OVER

JUMPRELU = sys.modules[ARCHITECTURES["jumprelu"].__module__]


def test_pseudo_derivatives_at_the_reference_points() -> None:
    """theta = .5, eps = .1: (.52 and .48) lie in the window, (.10 and 1.00) outside."""
    z = torch.tensor([0.10, 0.52, 0.48, 1.00], requires_grad=True)
    theta = torch.full((4,), 0.5, requires_grad=True)
    f = JUMPRELU.jump_relu(z, theta, 0.1)
    torch.testing.assert_close(f, torch.tensor([0, 0.52, 0, 1]))
    dz, dtheta = torch.autograd.grad(f.sum(), [z, theta])
    torch.testing.assert_close(dz, torch.tensor([0.0, 1, 0, 1]))
    torch.testing.assert_close(dtheta, torch.tensor([0.0, -5, -5, 0]))

    gate = JUMPRELU.heaviside(z, theta, 0.1)
    assert gate.tolist() == [0, 1, 0, 1]
    dz, dtheta = torch.autograd.grad(gate.sum(), [z, theta], allow_unused=True)
    assert dz is None
    torch.testing.assert_close(dtheta, torch.tensor([0.0, -10, -10, 0]))


def test_at_the_threshold_the_output_is_zero() -> None:
    z = theta = torch.tensor([2.0])
    assert JUMPRELU.jump_relu(z, theta, 0.1).item() == 0
    assert JUMPRELU.heaviside(z, theta, 0.1).item() == 0


@pytest.mark.parametrize("log", [True, False], ids=["log theta", "theta"])
@pytest.mark.parametrize(
    ("target", "per"), [(None, "token"), (3.0, "token"), (3.0, "batch")], ids=["L0", "target L0", "target mean L0"]
)
@pytest.mark.parametrize("theta", [0.8, 0.21], ids=["far from eps / 2", "just above eps / 2"])
def test_jumprelu_equals_its_dense_twin(theta: float, target: float | None, per: str, log: bool) -> None:
    """Every gradient, also where the window nearly reaches z = 0, that is every inactive latent of the dense twin."""
    sparsity = {"l0": target} if target else {"l0": None, "coefficient": LAMBDA}
    sae = build_jumprelu(theta, bandwidth=0.4, train_log_theta=log, l0_penalty_per=per, **sparsity)
    assert_twins_agree(sae, jumprelu_twin(0.4, target, log=log, per=per), step())


def test_training_keeps_theta_from_half_a_bandwidth_upwards() -> None:
    for log in (True, False):
        sae = build_jumprelu(0.05, bandwidth=0.4, train_log_theta=log)
        with torch.no_grad():
            sae.after_step(step())
        torch.testing.assert_close(sae.theta, torch.full_like(sae.theta, 0.2))
        assert build("jumprelu", bandwidth=0.4, theta_init=0.01, train_log_theta=log).theta.min() >= 0.2 - 1e-7


def test_log_theta_has_the_chain_factor() -> None:
    """d loss / d log theta = theta d loss / d theta, with theta about 2."""
    plain, logged = (build_jumprelu(2.0, bandwidth=1.0, train_log_theta=log) for log in (False, True))
    for sae in (plain, logged):
        sae.loss(activations(), step()).total.backward()
    assert plain.theta_parameter.grad.abs().max() > 0.01
    torch.testing.assert_close(logged.theta_parameter.grad, plain.theta_parameter.grad * plain.theta_parameter.detach())


def test_the_l0_term_moves_theta_only() -> None:
    """The loss at two coefficients differs in the gradient of theta alone."""
    sae, gradients = build_jumprelu(0.8, bandwidth=0.4, l0=None, coefficient=1.0), []
    for coefficient in (0.0, 5.0):
        sae.zero_grad()
        sae.loss(activations(), step(coefficient)).total.backward()
        gradients.append({name: value.grad.clone() for name, value in sae.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]) == (name != "theta_parameter"), name


@pytest.mark.parametrize(("per", "penalty"), [("token", (0.25 + 0.25 + 1 + 4) / 4), ("batch", (2.5 / 2 - 1) ** 2)])
def test_the_target_penalty_by_hand(per: str, penalty: float) -> None:
    """L0s of 1, 3, 0 and 6 at target 2: (L0 / 2 - 1)^2 is .25, .25, 1 and 4; their mean L0 is 2.5."""
    sae, x = sae_with_l0s(1, 3, 0, 6, l0_penalty_per=per)
    loss = sae.loss(x, step(0.3))
    assert loss.terms["reconstruction"].item() == 0
    assert loss.terms["l0"].item() == 2.5
    assert loss.total.item() == pytest.approx(0.3 * penalty)


def test_the_target_penalty_is_per_token_unless_told_otherwise() -> None:
    """As the papers have it: tokens with 1 and 3 latents on are no tokens with 2."""
    sae, x = sae_with_l0s(1, 3)
    assert sae.loss(x, step(1.0)).total.item() == 0.25
    assert settle(ArchSpec(name="jumprelu"), "paper")[0].get("l0_penalty_per", "token") == "token"


@pytest.mark.parametrize("per", ["token", "batch"])
def test_the_mean_pseudo_gradient_of_the_target_penalty_is_its_gradient(per: str) -> None:
    """Two latents read independent x ~ N(0, 1), so L0 is binomial: E[L0] = 2p and E[L0^2] = 2p + 2p^2.

    d / d theta_1 of E[(L0 / T - 1)^2], or of (E[L0] / T - 1)^2, by central differences, within five standard errors.
    """
    n, theta, eps, target = 1_000_000, 0.8, 0.05, 1.5
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"bandwidth": eps, "train_log_theta": False, "theta_init": theta, "l0_penalty_per": per}
    sae = ARCHITECTURES["jumprelu"](SAEConfig(d_in=2, d_sae=2, l0=target, options=options)).double()
    gradients = []
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
    for coefficient in (0.0, 1.0):
        (gradient,) = torch.autograd.grad(sae.loss(x, step(coefficient)).total, sae.theta_parameter)
        gradients.append(gradient)

    def above(threshold: float) -> float:
        return 0.5 * (1 - math.erf(threshold / math.sqrt(2)))

    def exact(threshold: float) -> float:
        """With the first latent's threshold there and the second's at theta."""
        p, q = above(threshold), above(theta)
        of_square = (p + q + 2 * p * q) / target**2 if per == "token" else ((p + q) / target) ** 2
        return of_square - 2 * (p + q) / target + 1

    h = 1e-4
    slope = (exact(theta + h) - exact(theta - h)) / (2 * h)
    density = math.exp(-(theta**2) / 2) / math.sqrt(2 * math.pi)
    # A token in the window adds at most 2 / (T eps), for |L0 / T - 1| <= 1 here; the kernel's width moves the mean too.
    tolerance = 5 * 2 / (target * eps) * math.sqrt(eps * density / n) + eps / 4 * 2 / target * density
    assert abs(slope) > 5 * tolerance
    assert (gradients[1] - gradients[0])[0].item() == pytest.approx(slope, abs=tolerance)


def test_the_target_penalty_pulls_l0_from_both_sides() -> None:
    """L0 of the batch: d (L0 / T - 1)^2 = 2 (L0 / T - 1) / T dL0: theta rises where L0 is above T and falls below."""
    free = build_jumprelu(0.8, bandwidth=0.4, l0=None, coefficient=1.0)
    terms = free.loss(activations(), step()).terms
    l0 = terms["l0"].item()
    (slope,) = torch.autograd.grad(terms["l0"], free.theta_parameter)
    assert slope.max() <= 0
    for target in (l0 / 2, 2 * l0):
        sae = build_jumprelu(0.8, bandwidth=0.4, l0=target, l0_penalty_per="batch")
        gradients = []
        for coefficient in (0.0, 7.0):
            loss = sae.loss(activations(), step(coefficient)).total
            gradients += torch.autograd.grad(loss, sae.theta_parameter)
        expected = 7 * 2 * (l0 / target - 1) / target * slope
        torch.testing.assert_close(gradients[1] - gradients[0], expected)


def test_the_mean_pseudo_gradient_is_the_gradient_of_the_mean_loss() -> None:
    """Over Gaussian tokens, d E[loss] / d theta by central differences, within five standard errors.

    One latent reads and writes one coordinate, x ~ N(0, 1), so that E[(x - f)^2 + lambda H(x - theta)] is known in
    closed form. The kernel's width adds a bias, below theta eps / 4 times the density at theta.
    """
    n, theta, eps, coefficient = 2_000_000, 0.8, 0.05, 0.3
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gaussian_sae(threshold: float) -> Any:
        config = SAEConfig(d_in=1, d_sae=1, coefficient=1.0, options={"bandwidth": eps, "train_log_theta": False})
        sae = ARCHITECTURES["jumprelu"](config).double()
        with torch.no_grad():
            sae.W_enc.fill_(1)
            sae.W_dec.fill_(1)
            sae.theta_parameter.fill_(threshold)
        return sae

    sae = gaussian_sae(theta)
    sae.loss(x, step(coefficient)).total.backward()

    def exact(threshold: float) -> float:
        """E[x^2; x < theta] + lambda P(x > theta), by the normal distribution's moments."""
        below = 0.5 * (1 + math.erf(threshold / math.sqrt(2)))
        density = math.exp(-(threshold**2) / 2) / math.sqrt(2 * math.pi)
        return below - threshold * density + coefficient * (1 - below)

    h = 1e-4
    slope = (exact(theta + h) - exact(theta - h)) / (2 * h)
    density = math.exp(-(theta**2) / 2) / math.sqrt(2 * math.pi)
    # A token in the window adds (2 theta^2 - lambda) / eps to the gradient below theta, and -lambda / eps above.
    variance = eps * density / 2 * ((2 * theta**2 - coefficient) ** 2 + coefficient**2) / eps**2
    tolerance = 5 * math.sqrt(variance / n) + theta * eps / 4 * density
    assert abs(slope) > 9 * tolerance
    assert sae.theta_parameter.grad.item() == pytest.approx(slope, abs=tolerance)


def test_dead_thresholds_relax_and_the_others_stay() -> None:
    """Twice by a half, for both parametrisations: 2 -> 0.5."""
    for log in (True, False):
        sae = build_jumprelu(2.0, 0.0, dead_relaxation=0.5, train_log_theta=log)
        with torch.no_grad():
            for _ in range(2):
                sae.after_step(step(dead=(4, 9)))
        expected = torch.full_like(sae.theta, 2.0)
        expected[[4, 9]] = 0.5
        torch.testing.assert_close(sae.theta, expected)


def test_quantile_thresholds_let_equally_many_pass_for_every_latent() -> None:
    sae = build("jumprelu", l0=1.0, bandwidth=0.01, theta_init="quantile", train_log_theta=False)
    x = activations(4000) - 2
    with torch.no_grad():
        sae.initialise(x)
        frequency = sae.encode(x).count_per_latent()[0] / 4000
    torch.testing.assert_close(frequency, torch.full((F,), START_OVER / F), rtol=0.01, atol=0.001)
    assert sae.theta.std() > 0.01
