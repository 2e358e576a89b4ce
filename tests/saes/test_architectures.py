"""Every built-in against its formulas, written out densely in float64; autograd does the rest.

Shapes: B tokens, D = d_in, F = d_sae. A twin takes an SAE's parameters by name and returns the loss; the built-in must
have the same loss and the same gradient for every parameter.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from twins import (
    LAMBDA,
    Parameters,
    assert_twins_agree_on,
    gated_ri_l1_twin,
    gated_twin,
    jumprelu_twin,
    relu_twin,
    step,
    topk_twin,
)

from sae_bench import ARCHITECTURES, SAEConfig, SparseAutoencoder, Step
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.saes.base import START_OVER

B, D, F = 29, 5, 16


def build(name: str, *, l0: float | None = 3.0, coefficient: float | None = None, d_in: int = D, **options: Any) -> Any:
    return ARCHITECTURES[name](
        SAEConfig(d_in=d_in, d_sae=F, l0=l0, coefficient=coefficient, seed=7, options=options)
    ).double()


def randomise(sae: SparseAutoencoder, **scale: float) -> SparseAutoencoder:
    """Move every parameter away from where it starts, as training does: nothing is zero, one, tied or of norm one."""
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.add_(scale.get(name, 0.3) * noise)
    return sae


def activations(n: int = B, d_in: int = D) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(n, d_in, generator=draw, dtype=torch.float64) + 2


def assert_twins_agree(sae: SparseAutoencoder, twin: Callable[[Parameters, Tensor], Tensor], when: Step) -> None:
    assert_twins_agree_on(activations(), sae, twin, when)


# --- what all share ---------------------------------------------------------------------------------------------


def test_the_decoder_gradient_loses_its_part_along_each_row() -> None:
    """Row (.6, .8) and gradient (5, 0): 3 lie along the row, which leaves (5, 0) - 3 (.6, .8)."""
    sae = ARCHITECTURES["topk"](SAEConfig(d_in=2, d_sae=2, l0=1))
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    sae.W_dec.grad = torch.tensor([[5.0, 0.0], [2.0, 7.0]])
    sae.project_gradient()
    torch.testing.assert_close(sae.W_dec.grad, torch.tensor([[3.2, -2.4], [2.0, 0.0]]))


def test_renormalising_keeps_directions() -> None:
    sae = ARCHITECTURES["topk"](SAEConfig(d_in=2, d_sae=2, l0=1))
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[3.0, 4.0], [0.0, -0.1]]))
    sae.renormalise()
    torch.testing.assert_close(sae.W_dec, torch.nn.Parameter(torch.tensor([[0.6, 0.8], [0.0, -1.0]])))


# --- relu -------------------------------------------------------------------------------------------------------


def test_relu_equals_its_dense_twin() -> None:
    assert_twins_agree(randomise(build("relu")), relu_twin, step())


def test_relu_starts_with_the_common_decoder_at_norm_a_tenth() -> None:
    relu, topk = build("relu"), build("topk")
    torch.testing.assert_close(relu.W_dec, 0.1 * topk.W_dec)
    torch.testing.assert_close(relu.W_enc, 0.1 * topk.W_dec.T)


def test_relu_starts_centred_on_the_decoder_bias() -> None:
    sae = build("relu")
    with torch.no_grad():
        sae.b_dec.fill_(5.0)
        sae.initialise(activations())
    z = sae.select(torch.full((1, D), 5.0, dtype=torch.float64), lambda z: z > -1e9).values
    torch.testing.assert_close(z, torch.zeros_like(z))


# --- gated ------------------------------------------------------------------------------------------------------


def test_gated_equals_its_dense_twin() -> None:
    assert_twins_agree(randomise(build("gated")), gated_twin, step())


def test_gated_ri_l1_equals_its_dense_twin() -> None:
    """Penalty weighted by decoder norms, and an auxiliary decoder that is not frozen."""
    sae = randomise(build("gated", penalty="ri_l1"))
    assert not sae.unit_norm_decoder
    assert_twins_agree(sae, gated_ri_l1_twin, step())


def test_gated_auxiliary_decoder_is_frozen_bias_included() -> None:
    sae = randomise(build("gated"))
    sae.folded = True  # takes the pre-encoder bias out, the other way by which a gradient reaches b_dec
    auxiliary = sae.loss(activations(), step()).terms["auxiliary"]
    gradients = torch.autograd.grad(auxiliary, [sae.W_dec, sae.b_dec, sae.W_enc], allow_unused=True)
    assert gradients[0] is None
    assert gradients[1] is None
    assert gradients[2].abs().max() > 0.1


def test_gated_reconstruction_sends_nothing_through_the_gate() -> None:
    sae = randomise(build("gated"))
    reconstruction = sae.loss(activations(), step()).terms["reconstruction"]
    (gradient,) = torch.autograd.grad(reconstruction, sae.b_enc)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def gated_and_jumprelu() -> tuple[Any, Any]:
    gated, jumprelu = randomise(build("gated")), build("jumprelu", train_log_theta=False)
    with torch.no_grad():
        jumprelu.W_dec.copy_(gated.W_dec)
        jumprelu.b_dec.copy_(gated.b_dec)
    return gated, jumprelu


@torch.no_grad()
def test_a_gated_sae_is_a_jumprelu_sae() -> None:
    """W' = W exp(r), b' = b_mag, theta = max(b_mag - exp(r) b_gate, 0), also where the maximum is 0."""
    gated, jumprelu = gated_and_jumprelu()
    theta = gated.b_mag - gated.r_mag.exp() * gated.b_enc
    assert (theta < -0.05).any()
    assert (theta > 0.05).any()
    jumprelu.W_enc.copy_(gated.W_enc * gated.r_mag.exp())
    jumprelu.b_enc.copy_(gated.b_mag)
    jumprelu.theta_parameter.copy_(theta.clamp(min=0))
    x = activations(500)
    f = gated.encode(x).to_dense()
    assert 0.1 < (f > 0).double().mean() < 0.9
    torch.testing.assert_close(jumprelu.encode(x).to_dense(), f)
    torch.testing.assert_close(jumprelu(x), gated(x))


@torch.no_grad()
def test_a_jumprelu_sae_is_a_gated_sae() -> None:
    """r_mag = 0, b_mag = b_enc, b_gate = b_enc - theta."""
    gated, jumprelu = gated_and_jumprelu()
    randomise(jumprelu, theta_parameter=0.0)
    jumprelu.theta_parameter.add_(0.7 * torch.rand(F))
    gated.r_mag.zero_()
    gated.W_enc.copy_(jumprelu.W_enc)
    gated.b_mag.copy_(jumprelu.b_enc)
    gated.b_enc.copy_(jumprelu.b_enc - jumprelu.theta)
    gated.W_dec.copy_(jumprelu.W_dec)
    gated.b_dec.copy_(jumprelu.b_dec)
    x = activations(500)
    torch.testing.assert_close(gated.encode(x).to_dense(), jumprelu.encode(x).to_dense())
    torch.testing.assert_close(gated(x), jumprelu(x))


# --- topk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [(), (9,), (1, 4, 9), (0, 1, 2, 5, 8, 11, 15)], ids=lambda dead: f"{len(dead)} dead")
def test_topk_equals_its_dense_twin(dead: tuple[int, ...]) -> None:
    """None dead, fewer than k_aux = 4, and more."""
    sae = randomise(build("topk", k_aux=4))
    assert_twins_agree(sae, lambda p, x: topk_twin(p, x, 3, dead, 4), step(dead=dead))


def test_topk_takes_the_k_largest_then_rectifies() -> None:
    """Of z = (3, -1, 2, -4) two are kept; of z = (-3, -1, -2, 1), one of the two largest is below zero."""
    sae = ARCHITECTURES["topk"](SAEConfig(d_in=4, d_sae=4, l0=2))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(4))
        sae.b_dec.fill_(10.0)
        f = sae.encode(torch.tensor([[13.0, 9.0, 12.0, 6.0], [7.0, 9.0, 8.0, 11.0]]))
    assert f.to_dense().tolist() == [[3, 0, 2, 0], [0, 0, 0, 1]]
    assert f.active_per_token().tolist() == [2, 1]


def hand_made_topk(**options: Any) -> Any:
    """Three latents, k = 1. x = (3, 1) has z = (20, 3, 5) and x_hat = (2, 0), and leaves e = (1, 1) to the dead."""
    sae = ARCHITECTURES["topk"](SAEConfig(d_in=2, d_sae=3, l0=1, options=options))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[10.0, 1.0, 3.0], [0.0, 1.0, -1.0]]))
        sae.W_dec.copy_(torch.tensor([[0.05, 0.0], [0.0, 0.2], [0.3, 0.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, 0.0]))
    return sae


@pytest.mark.parametrize(
    ("k_aux", "dead", "expected"),
    [
        (2, (1, 2), 0.5**2 + 0.4**2),  # e_hat = 3 (0, .2) + 5 (.3, 0) = (1.5, .6): no b_dec in it
        (2, (1,), 1 + 0.4**2),  # fewer dead than k_aux: e_hat = (0, .6)
        (1, (1, 2), 0.5**2 + 1),  # more dead than k_aux: the larger one, e_hat = (1.5, 0)
        (2, (), 0),
    ],
)
def test_aux_k_by_hand(k_aux: int, dead: tuple[int, ...], expected: float) -> None:
    loss = hand_made_topk(k_aux=k_aux).loss(torch.tensor([[3.0, 1.0]]), step(dead=dead))
    assert loss.terms["reconstruction"].item() == pytest.approx(2)
    assert loss.terms["aux_k"].item() == pytest.approx(expected)
    assert loss.total.item() == pytest.approx(2 + expected / 32)


def test_aux_k_is_finite_where_no_dead_latent_is_above_zero() -> None:
    """x = (-1, 1): z = (-20, -1, -7), so e_hat = 0 and the loss is ||e||^2 = ||x - b_dec||^2, with zero gradient."""
    sae = hand_made_topk()
    auxiliary = sae.loss(torch.tensor([[-1.0, 1.0]]), step(dead=(1, 2))).terms["aux_k"]
    assert auxiliary.item() == 5
    auxiliary.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in sae.parameters())


def test_aux_k_moves_dead_latents_only() -> None:
    sae = randomise(build("topk"))
    auxiliary = sae.loss(activations(), step(dead=(4, 9))).terms["aux_k"]
    W_enc, W_dec, b_enc = torch.autograd.grad(auxiliary, [sae.W_enc, sae.W_dec, sae.b_enc])
    for moved in (W_enc.any(0), W_dec.any(1), b_enc != 0):
        assert moved.nonzero().flatten().tolist() == [4, 9]


@pytest.mark.parametrize(("d_in", "k_aux"), [(640, 256), (768, 512), (2304, 1024), (8, 4)])
def test_k_aux_comes_from_d_in(d_in: int, k_aux: int) -> None:
    """The power of two nearest d_in / 2, by ratio: 384 is nearer to 512 than to 256."""
    for d_sae in (16, 64):
        assert ARCHITECTURES["topk"](SAEConfig(d_in=d_in, d_sae=d_sae, l0=3)).k_aux == k_aux


@pytest.mark.parametrize("k", [2.5, 17, 0.5])
def test_topk_refuses_a_k_that_is_no_number_of_latents(k: float) -> None:
    with pytest.raises(ValueError, match="whole number from 1 to the width, 16"):
        ARCHITECTURES["topk"].check(SAEConfig(d_in=D, d_sae=F, l0=k))


# --- jumprelu ---------------------------------------------------------------------------------------------------


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


def build_jumprelu(theta: float, spread: float = 0.2, **options: Any) -> Any:
    """A jumprelu SAE in general position, its thresholds in theta * (1 .. 1 + spread)."""
    sae = randomise(build("jumprelu", **options), theta_parameter=0.0)
    values = theta * (1 + spread * torch.rand(F, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    with torch.no_grad():
        sae.theta_parameter.copy_(values.log() if sae.options.train_log_theta else values)
    return sae


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


def sae_with_l0s(*l0s: int, **options: Any) -> tuple[Any, Tensor]:
    """An SAE of target L0 2 that reproduces its input, and tokens with so many latents on; theta is 0.5."""
    sae = build("jumprelu", l0=2.0, d_in=F, theta_init=0.5, train_log_theta=False, **options)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(F))
        sae.W_dec.copy_(torch.eye(F))
    return sae, torch.stack([(torch.arange(F) < n).double() for n in l0s])


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
