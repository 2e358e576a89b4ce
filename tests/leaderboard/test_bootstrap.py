"""Estimates and their intervals with known answers: by hand, by integration, and over a thousand experiments."""

import numpy as np
import pytest
from scipy import stats
from simulated import record
from synthetic import typed

from sae_bench.leaderboard.bootstrap import (
    Design,
    Estimate,
    _weight_of_pooled,
    _weight_of_seeds,
    difference,
    differences,
    document_variance,
    estimate,
    estimates,
)
from sae_bench.leaderboard.compare import ALPHA
from sae_bench.leaderboard.replicates import metric_replicates, over_seeds


def left_out(values, design):
    """Replicates of a mean of one value a document, with nothing between seeds."""
    found = np.full(design.n_replicates, values.mean())
    found[design.documents] = (values.sum() - values) / (len(values) - 1)
    return found


def test_a_jackknifed_ratio_has_the_error_of_the_linearised_one():
    from sae_bench.evaluation.stderr import ratio_stderr

    draw = np.random.default_rng(0)
    tokens = draw.integers(50, 150, 400).astype(float)
    sums = tokens * draw.normal(1, 0.4, 400)
    (one,), design = typed([record("a", 16, 0, 16.0, sums, tokens)]), Design(400, 1)
    found = estimate(metric_replicates(one, "loss", design), design)
    assert found.value == pytest.approx(sums.sum() / tokens.sum(), rel=1e-12)
    assert found.stderr == pytest.approx(ratio_stderr(sums, tokens), rel=0.01)
    assert not found.over_seeds


def test_seeds_alone_give_students_interval_of_their_mean():
    values = np.array([1.0, 1.4, 0.7, 1.2])
    design = Design(64, 4)
    replicates = over_seeds([np.full(design.n_replicates, value) for value in values], design)
    found = estimate(replicates, design)
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(stats.sem(values))
    assert found.interval() == pytest.approx(stats.t.interval(0.95, 3, values.mean(), stats.sem(values)))
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_the_variance_of_documents_has_as_many_degrees_of_freedom_as_its_tails_leave():
    """Half of Satterthwaite's: G / (kurtosis - 1), between 8 and G - 1."""
    design = Design(100, 1)
    draw = np.random.default_rng(0)
    two_values = np.tile([1.0, -1.0], 50)  # kurtosis 1: as many as there can be
    assert document_variance(left_out(two_values, design), design)[1] == 99
    one_alone = np.eye(100)[0]  # kurtosis about G
    assert document_variance(left_out(one_alone, design), design)[1] == 8
    bell = draw.normal(size=100)
    variance, degrees = document_variance(left_out(bell, design), design)
    assert variance == pytest.approx(bell.var(ddof=1) / 100)
    assert degrees == pytest.approx(100 / (stats.kurtosis(bell, fisher=False) - 1))


@pytest.mark.parametrize("design", [Design(60, 3, 2, 5), Design(47, 1), Design(200, 2, 3), Design(5, 2)])
def test_many_values_at_once_have_each_the_estimate_that_it_has_alone(design):
    """To the last bit: a table is the same however many SAEs are worked out together."""
    draw = np.random.default_rng(3)
    values = 5 + draw.standard_t(3, (7, design.n_replicates))
    values[:, design.moved] = values[:, :1]
    values[4] = 5.0
    of_seeds = [(0.3 * i, 4.0 + i) for i in range(7)]
    assert estimates(values, design) == [estimate(of.copy(), design) for of in values]
    alone = [difference(of.copy(), design, *seeds, 9) for of, seeds in zip(values, of_seeds, strict=True)]
    assert differences(values, design, of_seeds, 9) == alone


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_intervals_cover_whatever_the_seeds_have_of_the_variance(n_seeds):
    """By integration over both estimated variances, for true shares of the seeds from none to all."""
    n_documents, probabilities = 64, (np.arange(400) + 0.5) / 400
    of_seeds = stats.chi2.ppf(probabilities, n_seeds - 1) / (n_seeds - 1)
    of_documents = stats.chi2.ppf(probabilities[20::40], n_documents - 1) / (n_documents - 1)
    for share in (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0):
        covered = []
        for seeds in share * of_seeds:
            for documents in (1 - share) * of_documents:
                weight = _weight_of_seeds(seeds / (seeds + documents))
                sources = ((1 - weight, n_documents - 1.0), (weight, n_seeds - 1.0))
                covered.append(Estimate(0.0, (seeds + documents) ** 0.5, sources, True).interval()[1])
        assert 0.93 <= np.mean(2 * stats.norm.cdf(covered) - 1) <= 0.97


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_intervals_of_means_cover(n_seeds):
    """1,000 simulated experiments."""
    covered = 0
    n, design = 1000, Design(64, n_seeds)
    for i in range(n):
        draw = np.random.default_rng(i)
        of_document = left_out(draw.normal(0.1, 0.2, 64), design)
        by_seed = [of_document + seed for seed in draw.normal(0, 0.03, n_seeds)]
        low, high = estimate(over_seeds(by_seed, design), design).interval()
        covered += low <= 0.1 <= high
    assert 0.93 <= covered / n <= 0.97


@pytest.mark.parametrize("degrees", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("n_hypotheses", [1, 6, 12, 30])
def test_corrected_p_values_hold_far_out_in_the_tails(degrees, n_hypotheses):
    """By integration: P(p <= 5%) is at most 5%, whatever the true share of the seeds and however many hypotheses."""
    n_documents = 84
    edges = np.concatenate([[0], np.geomspace(1e-8, 2e-3, 400), np.linspace(2e-3, 1, 400)[1:]])
    of_seeds = stats.chi2.ppf((edges[1:] + edges[:-1]) / 2, degrees) / degrees
    of_documents = stats.chi2.ppf(np.arange(0.05, 1, 0.1), n_documents - 1) / (n_documents - 1)
    shares = np.linspace(0, 1, 501)
    weights = [_weight_of_pooled(float(share), degrees) for share in shares]
    for share in (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0):
        seeds, documents = np.meshgrid(share * of_seeds, (1 - share) * of_documents, indexing="ij")
        weight = np.interp(seeds / (seeds + documents), shares, weights)
        tail = ALPHA / 2 / n_hypotheses
        critical = weight * stats.t.isf(tail, degrees) + (1 - weight) * stats.t.isf(tail, n_documents - 1)
        rejected = (2 * stats.norm.sf(critical * np.sqrt(seeds + documents))).mean(1) @ np.diff(edges)
        assert rejected * n_hypotheses <= 1.04 * ALPHA


@pytest.mark.parametrize("n_hypotheses", [1, 18])
def test_the_interval_ends_at_zero_where_the_p_value_is_five_percent(n_hypotheses):
    draw, design = np.random.default_rng(0), Design(64, 2)
    spread = left_out(draw.normal(0, 1, 64), design)
    for shift in np.linspace(-3, 3, 61):
        d = difference(spread + shift, design, 0.01, 4, n_hypotheses)
        low, high = d.interval()
        assert (low <= 0 <= high) == (d.p_value > 0.05)
        assert d.interval(1 - d.p_value)[0] == pytest.approx(0, abs=1e-6) or d.p_value == 1 or shift < 0
