"""What splicing an SAE in costs, by hand, and where it is exactly nothing."""

from typing import Any

import pytest
import torch
from test_metrics import run

from sae_bench.evaluation.task import LMLosses


def lm_scores(spliced: list[float], zero: list[float] | None = None, kl: list[float] | None = None) -> Any:
    """Three predictions, two in document 0 and one in document 2; clean losses are 1, 2, 3."""
    losses = LMLosses(
        torch.tensor([0, 0, 2]),
        clean=torch.tensor([1.0, 2.0, 3.0]),
        spliced=torch.tensor(spliced),
        zero_ablated=torch.tensor(zero or [11.0, 12.0, 13.0]),
        mean_ablated=torch.tensor([4.0, 8.0, 6.0]),
        kl=torch.tensor(kl or [0.0, 0.0, 0.0]),
    )
    x = torch.zeros(5, 1)
    return run("delta_lm_loss", x, x, losses=losses, document=torch.tensor([0, 0, 1, 2, 2])).scores


def test_delta_lm_loss_by_hand() -> None:
    scores = lm_scores([1.5, 2.0, 4.0], kl=[0.125, 0.25, 1.125])
    values = {name: score.value for name, score in scores.items()}
    assert values == pytest.approx(
        {
            "delta_lm_loss": 0.5,
            "loss_recovered": 1 - 1.5 / 30,
            "loss_recovered_mean": 1 - 1.5 / 12,
            "kl": 0.5,
            "ce_clean": 2,
            "ce_spliced": 2.5,
            "ce_zero": 12,
            "ce_mean": 6,
        }
    )
    assert scores["delta_lm_loss"].n == 3
    # Documents add (.5, 1) over (2, 1) predictions: residuals -+ .5, sqrt(2 * .5) / 3.
    assert scores["delta_lm_loss"].stderr == pytest.approx(1 / 3)


def test_identity_costs_exactly_nothing() -> None:
    scores = lm_scores([1.0, 2.0, 3.0])
    assert [scores[name].value for name in ("delta_lm_loss", "loss_recovered", "kl")] == [0, 1, 0]


def test_the_zero_sae_recovers_exactly_nothing() -> None:
    assert lm_scores([11.0, 12.0, 13.0])["loss_recovered"].value == 0


def test_loss_recovered_is_undefined_where_ablation_costs_nothing() -> None:
    score = lm_scores([1.5, 2.0, 4.0], zero=[1.0, 2.0, 3.0])["loss_recovered"]
    assert (score.value, score.stderr) == (None, None)
    assert score.note == "undefined: the sum of added_by_zero is zero"
