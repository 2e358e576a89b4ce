"""Schedules worked out by hand, and a controller that has to find what it cannot see."""

import math

import pytest
import torch

from sae_bench.parsing import n_steps_in
from sae_bench.training.recipe import recipe_for
from sae_bench.training.schedules import (
    PROPORTIONAL_GAIN,
    CoefficientController,
    lr_factor,
    sparsity_factor,
)


def short(step: int) -> float:
    """200 steps of the preset `short`: linear over 5%, constant, linear to zero over the last 20%."""
    recipe = recipe_for("short", {})
    return lr_factor(step, 200, warmup=recipe.lr_warmup, shape=recipe.lr_warmup_shape, decay=recipe.lr_decay)


def paper(step: int) -> float:
    """5,000 steps of the preset `paper`: cosine from 0.1 over 1,000, then constant."""
    recipe = recipe_for("paper", {})
    return lr_factor(step, 5000, warmup=recipe.lr_warmup, shape=recipe.lr_warmup_shape, decay=recipe.lr_decay)


def test_a_warmup_up_to_one_is_a_fraction_of_the_run() -> None:
    assert [n_steps_in(warmup, 200) for warmup in (0, 0.05, 0.5, 1, 1000)] == [0, 10, 100, 200, 1000]


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1), (10, 1), (159, 1), (160, 1), (170, 0.75), (199, 1 / 40)]
)
def test_learning_rate_of_the_short_preset(step: int, factor: float) -> None:
    assert short(step) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (250, 0.1 + 0.9 * (0.5 - 0.125**0.5)), (500, 0.55), (1000, 1), (4999, 1)]
)
def test_learning_rate_of_the_paper(step: int, factor: float) -> None:
    assert paper(step) == pytest.approx(factor)


def test_warmup_and_decay_multiply_where_they_overlap() -> None:
    """Step 4 of 10: warm-up (4 + 1) / 8, decay 6 / 8."""
    assert lr_factor(4, 10, warmup=8, shape="linear", decay=0.8) == pytest.approx(5 / 8 * 6 / 8)


def test_the_learning_rate_is_never_zero() -> None:
    for shape in ("linear", "cosine"):
        factors = [lr_factor(step, 10, warmup=3, shape=shape, decay=0.5) for step in range(10)]
        assert min(factors) > 0
        assert max(factors) <= 1


def test_sparsity_grows_from_nothing_to_all() -> None:
    assert [sparsity_factor(step, 200, 0.05) for step in (0, 3, 10, 199)] == [0, 0.3, 1, 1]
    assert [sparsity_factor(step, 50_000, 10_000) for step in (0, 2500, 10_000, 49_999)] == [0, 0.25, 1, 1]
    assert sparsity_factor(0, 200, 0) == 1


def controller(
    target: float = 32.0, *, start: float = 1e-3, rate: float = 0.03, n_steps: int = 400
) -> CoefficientController:
    return CoefficientController(target, start=start, rate=rate, until=0.8, n_steps=n_steps, device=torch.device("cpu"))


def test_the_controller_answers_the_log_of_the_ratio_clipped_at_one() -> None:
    """L0 of 48 against 32: log(1.5); of 0 and 3,200: -1 and 1. Only the rate's part stays."""
    for l0, error in ((48.0, math.log(1.5)), (0.0, -1.0), (3200.0, 1.0), (32.0, 0.0)):
        found = controller(start=5.0, rate=0.2)
        found.update(0, torch.tensor(l0))
        assert found.coefficient.item() == pytest.approx(5 * math.exp((0.2 + PROPORTIONAL_GAIN) * error), rel=1e-5)
        found.update(1, torch.tensor(32.0))
        assert found.coefficient.item() == pytest.approx(5 * math.exp(0.2 * error), rel=1e-5)


@pytest.mark.parametrize("target", [8.0, 32.0, 120.0])
def test_the_controller_finds_the_coefficient_from_below(target: float) -> None:
    """L0(lambda) = 300 / (1 + (lambda / .02)^.9), seen with 5% noise: no overshoot on the way, 2% at the end."""
    n_steps, noise = 1000, torch.Generator().manual_seed(0)
    found = controller(target, n_steps=n_steps)

    def l0_at(coefficient: float) -> float:
        return 300 / (1 + (coefficient / 0.02) ** 0.9)

    wanted = 0.02 * (300 / target - 1) ** (1 / 0.9)
    path = []
    for step in range(n_steps):
        path.append(found.coefficient.item())
        seen = l0_at(path[-1]) * math.exp(0.05 * torch.randn((), generator=noise).item())
        found.update(step, torch.tensor(seen))
    assert path[0] == pytest.approx(1e-3)
    assert max(path) < 1.25 * wanted
    assert l0_at(path[-1]) == pytest.approx(target, rel=0.02)


def test_the_controller_freezes_at_the_mean_of_its_last_tenth() -> None:
    """Of 20 steps it adapts in 16, and ends at the mean of the last two: log 2 + (15 + 16) / 2 times .1."""
    found = controller(start=2.0, rate=0.1, n_steps=20)
    for step in range(16):
        found.update(step, torch.tensor(3200.0))
    frozen = found.coefficient.item()
    assert frozen == pytest.approx(2 * math.exp(1.55), rel=1e-5)
    for step in range(16, 20):
        found.update(step, torch.tensor(3200.0))
        assert found.coefficient.item() == frozen
