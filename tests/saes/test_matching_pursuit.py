"""Matching pursuit: the recurrence by hand, against autograd through all of it, and by both ways of choosing atoms.

Shapes: B tokens, D = d_in, F = d_sae.
"""

from typing import Any

import pytest
import torch
from float64_saes import activations, build, randomise
from twins import layouts, pursuit_twin, step

from sae_bench import ARCHITECTURES, SAEConfig, pursue
from sae_bench.saes import pursuit
from sae_bench.testing import check_architecture

WAYS = {"Gram matrix": 1 << 30, "products": 0}


@pytest.fixture(params=WAYS)
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pursuit, "GRAM_BYTES", WAYS[request.param])
    monkeypatch.setattr(pursuit, "CACHED", 1000)  # several chunks


@pytest.mark.usefixtures("_either_way")
def test_it_keeps_the_contract() -> None:
    check_architecture("matching_pursuit")
    check_architecture("matching_pursuit", residual_threshold=0.3, stop_on_duplicate_support=True)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("k", [1, 3, 9])
def test_loss_latents_and_gradients_are_those_of_the_unrolled_recurrence(k: int) -> None:
    """In float64, rows of any norm; nine steps in five dimensions take atoms again."""
    sae: Any = randomise(build("matching_pursuit", l0=float(k)), W_dec=0.05)
    x = activations()
    parameters = {name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}
    assert parameters.keys() == {"W_dec", "b_dec"}
    theirs, f = pursuit_twin(parameters, x, k)
    theirs.backward()
    for stored in layouts().values():
        sae.zero_grad()
        with stored:
            ours = sae.loss(x, step())
        ours.total.backward()
        torch.testing.assert_close(ours.total, theirs)
        torch.testing.assert_close(ours.latents.to_dense(), f)
        for name, value in sae.named_parameters():
            assert parameters[name].grad.abs().max() > 1e-6
            torch.testing.assert_close(value.grad, parameters[name].grad)


def test_gradients_are_finite_differences() -> None:
    """Of any function of f, not of the loss alone; x too. Forty atoms in five dimensions: one always points along r."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(4, 5, generator=draw, dtype=torch.float64).requires_grad_()
    W = torch.nn.functional.normalize(torch.randn(40, 5, generator=draw, dtype=torch.float64), dim=1).requires_grad_()
    weights = torch.randn(4, 40, generator=draw, dtype=torch.float64)
    assert (pursue(x, W, 4).active_per_token() == 4).all()
    assert torch.autograd.gradcheck(lambda x, W: (pursue(x, W, 4).to_dense() * weights).sum(), (x, W))


def of(x: list[float], atoms: list[list[float]], k: int, **stop: Any) -> list[float]:
    found: list[float] = (
        pursue(torch.tensor([x], dtype=torch.float32), torch.tensor(atoms), k, **stop).to_dense()[0].tolist()
    )
    return found


THREE = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]


@pytest.mark.usefixtures("_either_way")
def test_the_recurrence_by_hand() -> None:
    """x = (1, 2): inner products 1, 2, 2.2: the third, and (-.32, .24) is left; then .24 of the second, (-.32, 0).

    Then nothing points along what is left: -.32, 0, -.192, so the third step adds nothing.
    """
    assert of([1, 2], THREE, 1) == pytest.approx([0, 0, 2.2])
    assert of([1, 2], THREE, 2) == pytest.approx([0, 0.24, 2.2])
    assert of([1, 2], THREE, 3) == pytest.approx([0, 0.24, 2.2], abs=1e-6)


REPEATING = [[1.0, 0.0], [0.6, 0.8]]


@pytest.mark.usefixtures("_either_way")
def test_an_atom_that_is_taken_twice_adds_up() -> None:
    """x = (2, .5): 2 of the first, (0, .5) is left; .4 of the second, (-.24, .18); then nothing of the first.

    x = (-1, 3): 1.8 of the second, (-2.08, 1.56) is left, at right angles to it: no atom points along it.
    x = (1, .5), the second atom turned around: 1 of the first, .4 of the second, and .24 of the first again.
    """
    assert of([2, 0.5], REPEATING, 3) == pytest.approx([2, 0.4], abs=1e-6)
    assert of([-1, 3], REPEATING, 2) == pytest.approx([0, 1.8], abs=1e-6)
    three = [[1.0, 0.0], [-0.6, 0.8]]  # what is left: (0, .5), then (.24, .18)
    assert of([1, 0.5], three, 2) == pytest.approx([1, 0.4])
    assert of([1, 0.5], three, 3) == pytest.approx([1.24, 0.4])
    found = pursue(torch.tensor([[1.0, 0.5]]), torch.tensor(three), 3)
    assert found.active_per_token().tolist() == [2]
    assert of([1, 0.5], three, 9, stop_at_repeat=True) == pytest.approx([1.24, 0.4])  # added, then it stops
    assert of([1, 0.5], three, 9, least=0.35) == pytest.approx([1, 0.4])  # ||(.24, .18)|| = .3


def test_both_ways_take_the_same_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    x, W = torch.randn(300, 32, generator=draw), torch.randn(256, 32, generator=draw)
    W = torch.nn.functional.normalize(W, dim=1)
    found = []
    for bytes_ in WAYS.values():
        monkeypatch.setattr(pursuit, "GRAM_BYTES", bytes_)
        assert pursuit.pays(len(x), len(W), 16, 4) == (bytes_ > 0)
        found.append(pursue(x, W, 16).to_dense())
    torch.testing.assert_close(found[0], found[1])


def test_folding_takes_the_scale_in() -> None:
    """x_hat(C x) = C x_hat(x), stopping included; b_dec stays in front of the encoder."""
    config = SAEConfig(d_in=6, d_sae=24, l0=5, options={"residual_threshold": 0.5})
    sae: Any = ARCHITECTURES["matching_pursuit"](config)
    with torch.no_grad():
        sae.b_dec.add_(0.3)
        x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
        before, l0 = sae(x), sae.encode(x).active_per_token()
        sae.fold(7.0)
        torch.testing.assert_close(sae(7 * x), 7 * before)
    assert sae.config.options["residual_threshold"] == 3.5
    assert torch.equal(sae.encode(7 * x).active_per_token(), l0)
    assert l0.float().mean() < 4.9


@pytest.mark.parametrize("k", [2.5, 25])
def test_it_refuses_a_k_that_is_no_number_of_latents(k: float) -> None:
    with pytest.raises(ValueError, match="whole number from 1 to the width, 24"):
        ARCHITECTURES["matching_pursuit"].check(SAEConfig(d_in=6, d_sae=24, l0=k))
