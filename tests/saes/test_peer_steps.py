"""One step of ours equals the peers', on their weights and batches; where it does not, by what is named and no more.

`tests/parity/peer_steps.json` holds what SAELens and dictionary_learning computed, with their versions;
`tests/parity/steps.py` made it.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from twins import aux_k_twin, batchtopk_latents, error, nested, step

from sae_bench import ARCHITECTURES, SAEConfig

PARITY = Path(__file__).parents[1] / "parity"
sys.path.insert(0, str(PARITY))
import steps  # noqa: E402

PEERS = json.loads((PARITY / "peer_steps.json").read_text())
K_AUX = steps.D // 2
OPTIONS = {
    "batchtopk": {"k_aux": K_AUX},
    "matryoshka": {"k_aux": K_AUX, "group_shares": (2 / 16, 4 / 16)},
    "p_anneal": {"anneal_start": 12, "anneal_end": 0.9, "n_levels": 4, "n_recent": 5},
}


def ours(arch: str) -> tuple[Any, Tensor]:
    drawn = steps.draw()
    config = SAEConfig(d_in=steps.D, d_sae=steps.F, l0=steps.K, options=OPTIONS[arch])
    sae = ARCHITECTURES[arch](config).double()
    with torch.no_grad():
        for name in steps.PARAMETERS:
            getattr(sae, name).copy_(drawn[name])
    return sae, drawn["x"]


def assert_is(loss: Tensor, parameters: dict[str, Tensor], found: Any, times: float = 1.0) -> None:
    """The loss and its gradients, theirs being so many times as large."""
    assert found["loss"] == pytest.approx(times * loss.item(), rel=1e-8)  # one peer has AuxK in float32
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    for name, gradient in zip(parameters, gradients, strict=True):
        expected = torch.tensor(found["gradients"][name], dtype=torch.float64)
        torch.testing.assert_close(times * gradient, expected, msg=name)


def trained(sae: Any) -> dict[str, Tensor]:
    return {name: getattr(sae, name) for name in steps.PARAMETERS}


@pytest.mark.parametrize(
    ("peer", "arch", "times"),
    [
        ("sae_lens", "batchtopk", 1),
        ("dictionary_learning", "batchtopk", 1),
        ("sae_lens", "matryoshka", 3),  # a sum over three dictionaries
        ("dictionary_learning", "matryoshka", 1 / 3),  # their mean, of errors that were weighted by 1 / 3 already
    ],
)
def test_without_dead_latents_a_step_is_the_peer_s(peer: str, arch: str, times: float) -> None:
    sae, x = ours(arch)
    assert_is(sae.loss(x, step()).total, trained(sae), PEERS[peer]["found"][f"{arch}, 0 dead"], times)


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka"])
@pytest.mark.parametrize("peer", ["sae_lens", "dictionary_learning"])
def test_aux_k_differs_by_what_is_named(peer: str, arch: str) -> None:
    """SAELens leaves dead pre-activations below zero in; dictionary_learning divides by the variance of the error."""
    sae, x = ours(arch)
    p = trained(sae)
    f, z = batchtopk_latents(p, x, steps.K)
    x_hats = nested(p, f, steps.WIDTHS if arch == "matryoshka" else (steps.F,))
    errors = torch.stack([error(x, x_hat) for x_hat in x_hats])
    e = (x - x_hats[-1]).detach()
    rectified = aux_k_twin(p, e, z, steps.DEAD, K_AUX)
    assert_close(sae.loss(x, step(dead=steps.DEAD)).total, errors.mean() + rectified / 32)
    found = PEERS[peer]["found"][f"{arch}, {len(steps.DEAD)} dead"]
    if peer == "sae_lens":
        assert (z[:, list(steps.DEAD)] < 0).any()
        theirs = errors.sum() + aux_k_twin(p, e, z, steps.DEAD, K_AUX, lambda z: z) / 32
    else:
        variance = (e - e.mean(0)).square().sum(1).mean()
        theirs = errors.mean() / len(errors) + rectified / variance / 32
    assert_is(theirs, p, found)


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("peer", "share"), [("sae_lens", 0.01), ("dictionary_learning", 1.0)])
def test_the_first_threshold_is_the_least_value_kept(peer: str, share: float) -> None:
    """SAELens begins its average at 0, of which the first batch is a hundredth."""
    sae, x = ours("batchtopk")
    least = sae.loss(x, step()).minima["least_kept"].item()
    assert PEERS[peer]["found"]["batchtopk, 0 dead"]["threshold"] == pytest.approx(share * least, rel=1e-6)


def test_p_anneal_goes_the_peer_s_way() -> None:
    """Forty steps: p, lambda, which is rescaled three times, and the loss of each; the gradients of the last."""
    found = PEERS["dictionary_learning"]["found"]["p_anneal"]
    sae, x = ours("p_anneal")
    for number, (p, coefficient, loss) in enumerate(found["steps"]):
        when = replace(step(0.3), number=number, n_steps=40)
        got = sae.loss(x * (1 + number / 40), when)
        assert sae.p(sae.level(number, 40)) == pytest.approx(p, rel=1e-6)
        assert 0.3 * sae.alpha.item() == pytest.approx(coefficient, rel=1e-5)  # theirs passes through float32
        assert got.total.item() == pytest.approx(loss, rel=1e-5)
        with torch.no_grad():
            sae.after_step(replace(when, seen={name: term.detach() for name, term in got.terms.items()}))
    gradients = torch.autograd.grad(got.total, list(trained(sae).values()))
    for name, gradient in zip(steps.PARAMETERS, gradients, strict=True):
        torch.testing.assert_close(
            gradient, torch.tensor(found["gradients"][name], dtype=torch.float64), rtol=1e-5, atol=1e-6
        )
