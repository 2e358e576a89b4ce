"""Metrics on SAEs whose answers are known, and errors worked out by hand."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_bench import ARCHITECTURES, TASKS, EvalBatch, EvalSetting, Result, SAEConfig, Score
from sae_bench.evaluation.stderr import ratio_stderr
from sae_bench.evaluation.task import LMLosses
from sae_bench.saes.active import as_active

CPU = torch.device("cpu")
N = 60
DOCUMENT = torch.arange(N) // 13  # five documents, the last of 8 tokens


def tokens(scale: float = 1.0) -> Tensor:
    """Tokens with a mean of 5 in every coordinate, as float32."""
    return scale * (5 + torch.randn(N, 4, generator=torch.Generator().manual_seed(0)))


def run(
    task_name: str,
    x: Tensor,
    x_hat: Tensor,
    f: Any = None,
    losses: LMLosses | None = None,
    document: Tensor | None = None,
    sizes: Sequence[int] | None = None,
) -> Result:
    """Feed a task batches of these sizes (default: everything at once)."""
    f = torch.zeros(len(x), 3) if f is None else f
    document = torch.zeros(len(x), dtype=torch.long) if document is None else document
    sae = ARCHITECTURES["relu"](SAEConfig(d_in=x.shape[1], d_sae=f.shape[1], coefficient=1.0))
    task = TASKS[task_name]()
    task.start(EvalSetting(sae, x.double().mean(0), int(document.max()) + 1, CPU))
    for rows in torch.arange(len(x)).split(list(sizes or [len(x)])):
        task.update(EvalBatch(x[rows], as_active(f[rows]), x_hat[rows], document[rows], losses))
    return task.finish()


def reconstruction(x: Tensor, x_hat: Tensor, **more: Any) -> dict[str, float | None]:
    scores = run("reconstruction", x, x_hat, **more).scores
    return {name: score.value for name, score in scores.items()}


def legacy(x: Tensor, x_hat: Tensor, **more: Any) -> Score:
    return run("saebench_core", x, x_hat, **more).scores["explained_variance_legacy"]


def test_identity_leaves_nothing_unexplained() -> None:
    found = reconstruction(tokens(), tokens(), document=DOCUMENT)
    assert (found["fvu"], found["fve"], found["gamma"]) == (0, 1, 1)
    assert found["cosine"] == pytest.approx(1)
    assert found["l2_ratio"] == 1
    assert legacy(tokens(), tokens(), document=DOCUMENT).value == 1


def test_predicting_the_mean_explains_nothing() -> None:
    """Although the mean holds 96% of the tokens' squared norm."""
    x = tokens()
    found = reconstruction(x, x.mean(0).expand(N, -1), document=DOCUMENT)
    assert found["fvu"] == pytest.approx(1, abs=1e-6)
    assert found["fve"] == pytest.approx(0, abs=1e-6)


def test_the_mean_is_the_evaluation_sets_not_the_batches() -> None:
    x = tokens()
    found = reconstruction(x, x.mean(0).expand(N, -1), sizes=[7, 7, 46])
    assert found["fvu"] == pytest.approx(1, abs=1e-6)
    assert legacy(x, x.mean(0).expand(N, -1), sizes=[7, 7, 46]).value == pytest.approx(0, abs=1e-6)


def test_a_constant_added_is_paid_for() -> None:
    """sum ||c||^2 / sum ||x - mean||^2, for x = (1, 9) and c = 2: 8 / 32."""
    x = torch.tensor([[1.0], [9.0]])
    assert reconstruction(x, x + 2)["fvu"] == 0.25


@pytest.mark.parametrize("c", [0.5, 4.0])
def test_gamma_of_a_shrunken_reconstruction_is_the_factor(c: float) -> None:
    found = reconstruction(tokens(), c * tokens(), document=DOCUMENT)
    assert found["gamma"] == c  # exact: multiplying by a power of two does not round
    assert found["l2_ratio"] == pytest.approx(c)
    assert found["cosine"] == pytest.approx(1)


@pytest.mark.parametrize("c", [0.5, 0.9, 2.0])
def test_gamma_centred_is_the_factor_of_the_deviations_whatever_the_mean_is(c: float) -> None:
    """x_hat = m + c (x - m), m a hundred times the deviations: what is taken about zero sees next to nothing of it."""
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0)).double() + 100
    m = x.mean(0)
    found = reconstruction(x, m + c * (x - m), document=DOCUMENT)
    assert found["gamma_centred"] == pytest.approx(c, rel=1e-9)
    assert found["cosine_centred"] == pytest.approx(1)
    for name in ("gamma", "cosine", "l2_ratio"):
        assert found[name] == pytest.approx(1, abs=2e-4), name


def test_gamma_centred_and_its_error_by_hand() -> None:
    """x = (1, 3, 5, 7), mean 4, x_hat = (2, 3, 6, 6): deviations (-3, -1, 1, 3), (-2, -1, 2, 2); (4+1+4+4) / (6+1+2+6).

    Two documents: residuals 5 - 13/15 * 7 = -16/15 and 8 - 13/15 * 8 = 16/15; sqrt(2 * 2 * (16/15)^2) / 15.
    """
    x, x_hat = torch.tensor([[1.0], [3], [5], [7]]), torch.tensor([[2.0], [3], [6], [6]])
    score = run("reconstruction", x, x_hat, document=torch.tensor([0, 0, 1, 1]), sizes=[1, 3]).scores["gamma_centred"]
    assert score.value == pytest.approx(13 / 15)
    assert score.stderr == pytest.approx(32 / 225)
    assert score.formula == "deviation_hat_squared / inner_centred"


def test_gamma_centred_follows_from_sums_about_zero_where_the_means_agree() -> None:
    """How it is computed from records that do not hold it: E||x_hat||^2 - |m|^2 over E[x . x_hat] - |m|^2."""
    x = tokens().double()
    x_hat = 0.8 * x + 0.3 * torch.randn(N, 4, generator=torch.Generator().manual_seed(1)).double()
    x_hat += x.mean(0) - x_hat.mean(0)
    result = run("reconstruction", x, x_hat, document=DOCUMENT)
    sums = {name: sum(of) for name, of in result.by_document.items()}
    of_mean = float(x.square().sum()) - sums["variance"]
    computed = (sums["norm_hat_squared"] - of_mean) / (sums["inner"] - of_mean)
    assert result.scores["gamma_centred"].value == pytest.approx(computed)


@pytest.mark.parametrize("constant", ["mean", "another"])
def test_a_constant_reconstruction_has_no_gamma_centred_and_says_why(constant: str) -> None:
    x = tokens()
    x_hat = (x.double().mean(0).float() + (constant == "another")).expand(N, -1)
    score = run("reconstruction", x, x_hat, document=DOCUMENT).scores["gamma_centred"]
    assert (score.value, score.stderr) == (None, None)
    assert score.note == "undefined: x_hat does not vary with x"


def test_no_metric_that_leads_is_blind_to_halved_deviations() -> None:
    """Of a mean that holds 94% of E||x||^2, as on the residual stream of the published board, every one moves."""
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0)).double()
    x += 4 * x.std(0) - x.mean(0)
    whole, halved = (reconstruction(x, x.mean(0) + c * (x - x.mean(0))) for c in (1.0, 0.5))
    for metric in TASKS["reconstruction"].metrics:
        if metric.headline and metric.name != "l0":
            assert abs(whole[metric.name] - halved[metric.name]) > 0.2, metric.name
    assert abs(whole["gamma"] - halved["gamma"]) < 0.03


def test_a_zero_reconstruction_has_no_gamma_and_says_why() -> None:
    scores = run("reconstruction", tokens(), 0 * tokens()).scores
    assert scores["gamma"].value is None
    assert scores["gamma"].stderr is None
    assert scores["gamma"].note == "undefined: the sum of inner is zero"
    assert scores["cosine"].value == 0
    assert scores["l2_ratio"].value == 0


def test_cosine_and_l2_ratio_are_means_over_tokens() -> None:
    """(3, 4) -> (3, 0): cosine .6, ratio .6; (0, 2) -> (0, 6): 1 and 3."""
    found = reconstruction(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 6.0]]))
    assert found["cosine"] == pytest.approx(0.8)
    assert found["l2_ratio"] == pytest.approx(1.8)


def test_l0_counts_values_above_zero() -> None:
    f = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0], [0.0, 2.0, 1e-20]])
    assert reconstruction(torch.ones(3, 1), torch.ones(3, 1), f=f)["l0"] == 4 / 3


def test_the_tokens_furthest_from_the_mean_are_left_out_by_hand() -> None:
    """2,000 tokens, so 2 are left out: (-30, 40) and (30, -40) hold 5,000 of 6,998 and the SAE loses them alone."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(1000, 1)
    x[700], x[1301] = torch.tensor([-30.0, 40.0]), torch.tensor([30.0, -40.0])
    x_hat = 0.5 * x
    x_hat[[700, 1301]] = x[[700, 1301]]
    document = torch.arange(2000) // 50
    result = run("reconstruction", x, x_hat, document=document, sizes=[800, 1200])
    found = result.scores
    assert found["fve_without_far"].value == pytest.approx(0.75)
    assert found["fve_without_far"].stderr == pytest.approx(0, abs=1e-12)
    assert found["fve_without_far"].n == 1998
    assert found["far_variance"].value == pytest.approx(5000 / 6998)
    assert found["fve"].value == pytest.approx(1 - 0.25 * 1998 / 6998)
    per_document = 2500 / 6998
    above, below = np.zeros(40), np.full(40, 50.0)
    above[[14, 26]], below[[14, 26]] = 2500, 2549
    assert found["far_variance"].stderr == pytest.approx(ratio_stderr(above, below))
    assert result.details["far"] == {
        "document": [14, 26], "tokens": [1, 1], "variance": [2500, 2500], "squared_error": [0, 0],
    }  # fmt: skip
    assert result.caption is not None
    assert result.caption.startswith(f"{2 * per_document:.0%} of the variance is that of 0.1% of the tokens")
    even = run("reconstruction", tokens(), tokens(), document=DOCUMENT)
    assert even.caption is None
    assert even.scores["far_variance"].value < 0.2


def test_the_furthest_tokens_are_kept_in_memory_that_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they come: of 20,000 tokens 20, though no more than 25 are kept from one batch to the next."""
    monkeypatch.setitem(vars(sys.modules[TASKS["reconstruction"].__module__]), "MOST_FAR", 25)
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)).double()
    x *= torch.rand(20_000, 1, generator=torch.Generator().manual_seed(1)).double() ** -0.5
    x_hat, document = 0.9 * x + 0.1, torch.arange(20_000) // 500
    deviation = (x - x.mean(0)).square().sum(1)
    far = deviation >= deviation.sort().values[-20]
    assert far.sum() == 20
    for order in (torch.arange(20_000), deviation.argsort(), deviation.argsort(descending=True)):
        parts = (x[order], x_hat[order])
        result = run("reconstruction", *parts, document=document[order], sizes=[10, 990] * 20)
        error = (x - x_hat).square().sum(1)
        expected = 1 - error[~far].sum() / deviation[~far].sum()
        assert result.scores["fve_without_far"].value == pytest.approx(float(expected))
        assert result.scores["far_variance"].value == pytest.approx(float(deviation[far].sum() / deviation.sum()))
        assert result.details["far"]["document"] == document[far].unique().tolist()


def test_a_token_alone_leaves_no_others_and_says_so() -> None:
    x = torch.tensor([[1.0, 0.0]])
    sae = ARCHITECTURES["relu"](SAEConfig(d_in=2, d_sae=3, coefficient=1.0))
    task = TASKS["reconstruction"]()
    task.start(EvalSetting(sae, torch.zeros(2).double(), 1, CPU))
    task.update(EvalBatch(x, as_active(torch.zeros(1, 3)), x, torch.zeros(1, dtype=torch.long), None))
    score = task.finish().scores["fve_without_far"]
    assert (score.value, score.stderr, score.note) == (None, None, "undefined: the other tokens do not vary")


@given(st.floats(1e-3, 1e3), st.permutations(range(N)), st.integers(1, N - 1))
def test_scaling_ordering_and_batching_leave_values_unchanged(scale: float, order: list[int], cut: int) -> None:
    x = tokens()
    x_hat = 0.9 * x + 0.1 * torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
    before = run("reconstruction", x, x_hat, document=DOCUMENT).scores
    after = run(
        "reconstruction", scale * x[order], scale * x_hat[order], document=DOCUMENT[order], sizes=[cut, N - cut]
    ).scores
    for name in before:
        assert after[name].value == pytest.approx(before[name].value, rel=1e-5, abs=1e-5)
        assert after[name].stderr == pytest.approx(before[name].stderr, rel=1e-4, abs=1e-5)


def test_legacy_variance_by_hand() -> None:
    """Mean 4: errors (4, .25, 0, 4) over variances (16, 1, 25, 4), a mean of ratios and no ratio of means."""
    x, x_hat = torch.tensor([[0.0], [3], [9], [6], [2]]), torch.tensor([[2.0], [3.5], [9], [4], [2]])
    assert legacy(x, x_hat, sizes=[3, 2]).value == pytest.approx(1 - (0.25 + 0.25 + 0 + 1 + 0) / 5)


def test_a_token_at_the_mean_has_no_legacy_variance() -> None:
    x, x_hat = torch.tensor([[1.0], [5], [3]]), torch.tensor([[1.0], [3], [0]])
    mixed = legacy(x, x_hat, sizes=[2, 1])
    assert (mixed.value, mixed.n) == (0.5, 2)
    alone = legacy(x[2:], x_hat[2:])
    assert (alone.value, alone.n) == (None, 0)
    assert alone.note
