"""Every built-in against its formulas, written out densely in float64; autograd does the rest.

Shapes: B tokens, D = d_in, F = d_sae. A twin takes an SAE's parameters by name and returns the loss; the built-in must
have the same loss and the same gradient for every parameter.
"""

from typing import Any

import pytest
import torch
from float64_saes import D, F, activations, assert_twins_agree, build, randomise
from twins import (
    gated_ri_l1_twin,
    gated_twin,
    relu_twin,
    step,
    topk_twin,
)

from sae_bench import ARCHITECTURES, SAEConfig

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
