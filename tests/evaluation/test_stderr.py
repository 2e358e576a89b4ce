"""Standard errors worked out by hand, and sums by document that are exact."""

import numpy as np
import pytest
import scipy.stats
import torch

from sae_bench.evaluation.document_sums import DocumentSums
from sae_bench.evaluation.stderr import jackknife_stderr, ratio_stderr

CPU = torch.device("cpu")


def test_ratio_error_by_hand() -> None:
    """15 / 5 = 3, residuals (-1, -2, 3), sqrt(3 / 2 * 14) / 5."""
    assert ratio_stderr(np.array([2.0, 4, 9]), np.array([1.0, 2, 2])) == pytest.approx(21**0.5 / 5)


def test_where_each_token_is_a_document_the_error_is_the_ordinary_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=37)
    assert ratio_stderr(values, np.ones(37)) == pytest.approx(scipy.stats.sem(values))


def test_repeating_a_documents_tokens_brings_no_precision() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=37)
    assert ratio_stderr(10 * values, np.full(37, 10.0)) == pytest.approx(scipy.stats.sem(values))


def test_ratio_error_agrees_with_a_bootstrap_of_documents() -> None:
    rng = np.random.default_rng(1)
    denominator = rng.gamma(4, 2, size=400)
    numerator = denominator * rng.normal(3, 0.5, size=400) + rng.normal(0, 2, size=400)
    drawn = rng.integers(0, 400, size=(4000, 400))
    bootstrap = (numerator[drawn].sum(1) / denominator[drawn].sum(1)).std()
    assert ratio_stderr(numerator, denominator) == pytest.approx(bootstrap, rel=0.05)  # its own error: 1%


def test_jackknife_by_hand() -> None:
    """(1, 2, 6): mean 3, squares 4 + 1 + 9, times 2 / 3."""
    assert jackknife_stderr(np.array([1.0, 2, 6])) == pytest.approx((28 / 3) ** 0.5)


def test_jackknife_of_a_mean_is_its_ordinary_error() -> None:
    values = np.random.default_rng(2).normal(5, 2, size=23)
    left_out = (values.sum() - values) / 22
    assert jackknife_stderr(left_out) == pytest.approx(scipy.stats.sem(values))


def test_one_document_has_no_error() -> None:
    assert ratio_stderr(np.array([3.0]), np.array([2.0])) is None
    assert jackknife_stderr(np.array([3.0])) is None


def test_sums_are_kept_per_document() -> None:
    """Documents 0 and 2 of three; document 1 is not seen and does not enter the error."""
    sums = DocumentSums(3, CPU)
    for document, value in ((torch.tensor([2, 0]), [4.0, 1.0]), (torch.tensor([0]), [2.0])):
        sums.add_count(document, "tokens")
        sums.add(document, {"value": torch.tensor(value)})
    assert sums.by_document() == {"tokens": [2, 0, 1], "value": [3, 0, 4]}
    score = sums.ratio("value", "tokens", "tokens")
    assert (score.value, score.n, score.formula) == (7 / 3, 3, "value / tokens")
    assert score.stderr == pytest.approx(ratio_stderr(np.array([3.0, 4]), np.array([2.0, 1])))
    assert score.stderr == pytest.approx(10 / 9)  # residuals -+ 5/3: sqrt(2 * 50 / 9) / 3
    rest = sums.ratio("value", "tokens", "tokens", one_minus=True)
    assert (rest.value, rest.stderr, rest.formula) == (1 - 7 / 3, score.stderr, "1 - value / tokens")


def test_sums_are_exact_beyond_float32() -> None:
    sums = DocumentSums(1, CPU)
    for value in (2.0**25, 1.0, 1.0):
        sums.add(torch.tensor([0]), {"value": torch.tensor([value])})
    assert sums.total("value") == 2**25 + 2
