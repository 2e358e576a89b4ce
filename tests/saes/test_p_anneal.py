"""p-annealing: its formulas, when p goes down, and what that does to lambda."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from float64_saes import activations, build, randomise
from toy_trainer import activations as toy_activations
from toy_trainer import started
from twins import LAMBDA, assert_twins_agree_on, p_anneal_twin, step

from sae_bench import Step

SETTING = {"anneal_start": 12, "anneal_end": 0.9, "n_levels": 4, "n_recent": 5}
LEVELS = [0] * 21 + [1] * 8 + [2] * 8 + [3] * 3
"""Of 40 steps: p goes down after steps 20, 28 and 36."""


@pytest.mark.parametrize(("number", "p"), [(0, 1.0), (25, 1 - 0.8 / 3), (39, 0.2)])
def test_p_anneal_equals_its_dense_twin(number: int, p: float) -> None:
    sae = randomise(build("p_anneal", **SETTING))
    when = replace(step(), number=number, n_steps=40)
    assert_twins_agree_on(activations(), sae, lambda q, x: p_anneal_twin(q, x, p), when)


def test_alpha_scales_lambda() -> None:
    sae = randomise(build("p_anneal", **SETTING))
    with torch.no_grad():
        sae.alpha.fill_(2.5)
    when = replace(step(), number=25, n_steps=40)
    assert_twins_agree_on(activations(), sae, lambda q, x: p_anneal_twin(q, x, 1 - 0.8 / 3, 2.5 * LAMBDA), when)


def test_p_goes_down_in_equal_steps_and_stays() -> None:
    sae: Any = build("p_anneal", **SETTING)
    assert [sae.level(number, 40) for number in range(40)] == LEVELS
    assert [sae.p(level) for level in range(4)] == pytest.approx([1, 1 - 0.8 / 3, 1 - 1.6 / 3, 0.2])
    assert sae.level(10**6, 10**6) == 3
    assert {sae.level(number, 10) for number in range(10)} == {0}, "a run shorter than anneal_start keeps p = 1"


def told(sae: Any, number: int, penalty: float, under_next: float) -> None:
    seen = {"penalty": torch.tensor(penalty), "penalty_next": torch.tensor(under_next)}
    with torch.no_grad():
        sae.after_step(
            Step(torch.tensor(0.0), torch.tensor([], dtype=torch.long), number=number, n_steps=40, seen=seen)
        )


def test_lambda_is_rescaled_by_the_latest_batches_alone() -> None:
    """Penalties of 6 under p and 2 under the next in the five latest batches: alpha is 3, then 3 * 5."""
    sae = build("p_anneal", **SETTING)
    for number in range(21):
        told(sae, number, *((6.0, 2.0) if number > 15 else (100.0, 1.0)))
        assert sae.alpha.item() == (3 if number == 20 else 1)
    for number in range(21, 29):
        told(sae, number, 10.0, 2.0)
    assert sae.alpha.item() == 15
    for number in range(29, 37):
        told(sae, number, 0.0, 0.0)
    assert sae.alpha.item() == 15, "where nothing is active nothing is known"


@pytest.mark.parametrize("n_levels", [4, 60])  # 60 levels in 24 steps: p falls by two or three at once
def test_rescaling_leaves_the_penalty_as_large_as_it_was(n_levels: int) -> None:
    """On one batch, before and after each of the steps down."""
    sae, x = randomise(build("p_anneal", **SETTING | {"n_levels": n_levels})), activations()
    penalties = []
    for number in range(40):
        when = replace(step(), number=number, n_steps=40)
        with torch.no_grad():
            loss = sae.loss(x, when)
            penalties.append((sae.alpha * loss.terms["penalty"]).item())
            sae.after_step(replace(when, seen=loss.terms))
    assert sae.level(39, 40) == n_levels - 1
    assert penalties == pytest.approx([penalties[0]] * 40)


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_gradients_are_finite_at_and_near_zero(kernel: Any) -> None:
    """Padding is 0 and some values are as good as 0, where f^p has no bounded slope."""
    trainer = started("p_anneal", kernels=kernel)
    trainer.sae.b_enc.data.fill_(1e-30)
    trainer.sae.W_enc.data.zero_()
    trainer._loss_with_gradients(toy_activations(0), replace(step(), number=49, n_steps=50))
    assert all(parameter.grad.isfinite().all() for parameter in trainer.sae.parameters())
