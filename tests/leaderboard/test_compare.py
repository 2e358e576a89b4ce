"""Statistics with known answers: planted differences are found, planted ties are not, intervals cover."""

import csv
import importlib.util
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import PchipInterpolator
from synthetic import at, typed

from sae_bench.errors import UserError
from sae_bench.leaderboard import compare_table
from sae_bench.leaderboard.bootstrap import (
    MIN_DOCUMENTS,
    Design,
    Estimate,
    _weight_of_pooled,
    _weight_of_seeds,
    difference,
    differences,
    document_variance,
    estimate,
    estimates,
    seed_variance,
)
from sae_bench.leaderboard.compare import ALPHA, check_metrics, compare, comparisons
from sae_bench.leaderboard.curves import area, at_l0, common_range, pareto_front
from sae_bench.leaderboard.replicates import metric_replicates, over_seeds

N_DOCUMENTS = 60


def record(label, target, seed, l0, numerator, tokens, better="down"):
    """A record with one metric, loss = sum(numerator) / tokens, and the L0."""
    by_document = {"added": list(numerator), "tokens": list(tokens), "active": list(l0 * np.asarray(tokens))}

    def score(name):
        above, below = sum(by_document[name]), sum(by_document["tokens"])
        return {"value": above / below, "stderr": 0.0, "n": int(below), "formula": f"{name} / tokens", "note": None}

    return {
        "failure": None,
        "task": "t",
        "task_version": "1",
        "metrics": {"loss": {"better": better}, "l0": {"better": None}},
        "scores": {"loss": score("added"), "l0": score("active")},
        "by_document": by_document,
        "per_latent": {},
        "details": {},
        "sae": {"id": f"{label}.{target}.{seed}", "arch": label.partition(":")[0], "label": label, "seed": seed,
                "target_l0": target, "d_sae": 8, "site": {"name": "s"}},
        "provenance": {"model": "m"},
    }  # fmt: skip


def simulated(seed, effects, n_seeds=5, seed_sd=0.02, document_sd=0.3, noise=0.05, targets=(16, 32, 64)):
    """loss = 1 - log10(L0) / 4 + effect + what a document and a seed add; documents are shared by all SAEs."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(50, 150, N_DOCUMENTS).astype(float)
    of_document = draw.normal(0, document_sd, N_DOCUMENTS)
    records = []
    for label, effect in effects.items():
        for run in range(n_seeds):
            of_seed = draw.normal(0, seed_sd)
            for target in targets:
                level = 1 - np.log10(target) / 4 + effect + of_seed + of_document
                loss = level + draw.normal(0, noise, N_DOCUMENTS)
                records.append(record(label, target, run, target, loss * tokens, tokens))
    return records


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


def test_curves_go_through_their_points_and_stay_between_them():
    l0, value = np.array([[10.0, 20.0, 80.0]]), np.array([[3.0, 2.9, 1.0]])
    assert at_l0(l0, value, (10.0, 20.0, 80.0)) == pytest.approx(value)
    assert np.all(np.diff(at_l0(l0, value, np.linspace(10, 80, 50).tolist())) <= 0)


@pytest.mark.parametrize("n_targets", [2, 3, 6])
def test_curves_are_the_monotone_cubics_of_scipy_each_with_l0s_of_its_own(n_targets):
    draw = np.random.default_rng(0)
    l0, value = np.sort(draw.uniform(5, 200, (50, n_targets)), axis=1), draw.normal(size=(50, n_targets))
    wanted = (12.0, 50.0, 120.0)
    found = at_l0(l0, value, wanted)
    for x, y, heights in zip(l0, value, found, strict=True):
        scipys = PchipInterpolator(np.log(x), y)
        assert heights == pytest.approx(scipys(np.log(np.clip(wanted, x[0], x[-1]))))
        low, high = x[0] ** 0.9 * x[-1] ** 0.1, x[0] ** 0.2 * x[-1] ** 0.8
        mean = scipys.integrate(np.log(low), np.log(high)) / np.log(high / low)
        assert area(x[None], y[None], (low, high)) == pytest.approx(mean)


def test_targets_of_one_l0_are_averaged_and_one_target_is_a_point():
    same = np.array([[10.0, 20.0, 20.0]]), np.array([[3.0, 2.0, 1.0]])
    assert at_l0(*same, [20.0]) == pytest.approx(1.5)
    assert at_l0(np.array([[16.0]]), np.array([[0.7]]), [16.0]) == pytest.approx(0.7)


def test_the_area_of_a_line_in_log_l0_is_its_middle():
    l0 = np.array([10.0, 20.0, 40.0, 80.0])
    value = np.log2(l0)
    assert area(l0[None], value[None], (10.0, 40.0)) == pytest.approx(np.log2(20))
    assert common_range([l0, np.array([15.0, 200.0])]) == (15.0, 80.0)
    assert common_range([l0, np.array([90.0, 200.0])]) is None


def test_the_pareto_front_by_hand():
    l0, loss = [10, 20, 30, 20, 40], [5.0, 4.0, 4.5, 6.0, 1.0]
    assert pareto_front(l0, loss, up=False) == [0, 1, 4]
    assert pareto_front(l0, [-v for v in loss], up=True) == [0, 1, 4]


def test_a_planted_difference_is_found_and_the_best_stands_out():
    (comparison,) = comparisons(typed(simulated(0, {"good": 0.0, "same": 0.0, "bad": 0.15})), ["loss"])
    standings, differences = at(comparison, "loss", (20.0, 50.0, 100.0))
    for l0 in (20.0, 50.0):
        assert {s.label for s in standings[l0] if s.best} == {"good", "same"}
        values = {s.label: s.estimate.value for s in standings[l0]}
        assert values["bad"] - values["good"] == pytest.approx(0.15, abs=0.05)
    assert all(s.estimate is None for s in standings[100.0]), "nothing is extrapolated"
    ties = {(d.label, d.other): d.tie for d in differences if d.l0 == 20.0}
    assert ties == {("bad", "good"): False, ("bad", "same"): False, ("good", "same"): True}
    found = compare(comparison, "loss")
    assert found.between == (16.0, 64.0)
    assert {s.label for s in found.standings[None] if s.best} == {"good", "same"}


def test_pairing_on_documents_makes_differences_far_surer_than_values():
    (comparison,) = comparisons(typed(simulated(1, {"a": 0.0, "b": 0.0}, document_sd=1.0)), ["loss"])
    standings, (difference,) = at(comparison, "loss", (30.0,))
    assert difference.estimate.stderr < 0.2 * standings[30.0][0].estimate.stderr


def test_one_seed_says_nothing_of_seeds():
    (comparison,) = comparisons(typed(simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=1)), ["loss"])
    standings, _ = at(comparison, "loss", (20.0,))
    assert not any(s.estimate.over_seeds for s in standings[20.0])


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


def test_what_never_varied_is_told_from_nothing():
    """A share whose jackknife is 0 with both seeds, in both architectures."""
    records = simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=2)
    for one in records:
        one["metrics"]["share"] = {"better": "down", "headline": True}
        share = 0.0 if one["sae"]["label"] == "a" else 0.25
        one["scores"]["share"] = {"value": share, "stderr": 0.0, "n": 9, "formula": None, "note": None}
    (comparison,) = comparisons(typed(records), ["share"])
    standings, (d,) = at(comparison, "share", (30.0,))
    assert d.estimate.value == -0.25
    assert np.isnan(d.estimate.p_value)
    assert d.estimate.interval() == (-np.inf, np.inf)
    assert d.tie
    assert not any(s.best for s in standings[30.0])
    assert np.isnan(Estimate(0.25, 0.0, ((1.0, 9.0),), True).p_value)


def test_pooled_seeds_are_all_architectures_unless_the_pair_varies_more():
    """Variances between seeds of 2, 8 and 0, two seeds, nothing between documents."""
    records = simulated(0, {"a": 0.0, "b": 0.0, "c": 0.0}, n_seeds=2, targets=(32,))
    deviations = {"a": (-1.0, 1.0), "b": (-2.0, 2.0), "c": (0.0, 0.0)}
    for one in records:
        tokens = one["by_document"]["tokens"]
        value = 10 + deviations[one["sae"]["label"]][one["sae"]["seed"]]
        one["by_document"]["added"] = [value * n for n in tokens]
    (comparison,) = comparisons(typed(records), ["loss"])
    differences = {(d.label, d.other): d.estimate for d in at(comparison, "loss", (32.0,))[1]}
    own = {"a": 1.0, "b": 4.0, "c": 0.0}  # of the mean of two
    pooled = 2 * sum(own.values()) / 3
    for (label, other), e in differences.items():
        assert e.stderr**2 == pytest.approx(max(pooled, own[label] + own[other])), (label, other)
        assert e.sources[-1] == (1.0, 3.0), "three architectures with one degree of freedom each"
    assert seed_variance(np.array([10.0] * (1 + 60 + 1) + [11.0, 9.0]), Design(60, 2)) == 1.0


def test_all_pairs_at_all_l0s_and_by_area_are_one_family():
    (comparison,) = comparisons(typed(simulated(0, {"a": 0.0, "b": 0.0, "c": 0.0})), ["loss"])
    found = compare(comparison, "loss", (20.0, 50.0, 500.0))
    assert {d.estimate.n_hypotheses for d in found.differences} == {3 * 3}
    assert len(found.differences) == 9
    at_l0s = at(comparison, "loss", (20.0, 50.0, 500.0))[1]
    assert [*at_l0s, *(d for d in found.differences if d.l0 is None)] == found.differences


PLANTED = {"a": 0.0, "b": 0.0, "c": 0.3}
SIMULATIONS = 1000


@pytest.fixture(scope="module")
def simulations():
    """Whole comparisons - records, curves, L0s, pairs - of simulated experiments: two alike, one worse by 0.3."""
    found = []
    for i in range(SIMULATIONS):
        (comparison,) = comparisons(typed(simulated(i, PLANTED, n_seeds=3, document_sd=0.1)), ["loss"])
        found.append(compare(comparison, "loss", (20.0, 50.0)))
    return found


def covers(e, truth):
    low, high = e.interval()
    return low <= truth <= high


def test_intervals_of_planted_differences_cover(simulations):
    """Each by itself, and all of a table together."""
    of_tables = [[(d.estimate, PLANTED[d.label] - PLANTED[d.other]) for d in c.differences] for c in simulations]
    assert all(len(of) == 3 * 3 for of in of_tables)
    alone = [covers(replace(e, n_hypotheses=1), truth) for of in of_tables for e, truth in of]
    assert 0.93 <= np.mean(alone) <= 0.97
    assert np.mean([all(covers(e, truth) for e, truth in of) for of in of_tables]) >= 0.95


def test_intervals_of_curves_at_matched_l0_cover(simulations):
    """The truth at an L0 is the curve through the targets' true heights: the interpolation is part of the measure."""
    targets = np.array([[16.0, 32.0, 64.0]])
    truth = dict(zip((20.0, 50.0), at_l0(targets, 1 - np.log10(targets) / 4, (20.0, 50.0))[0], strict=True))
    covered = []
    for found in simulations:
        for l0, height in truth.items():
            covered += [covers(s.estimate, height + PLANTED[s.label]) for s in found.standings[l0]]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_any_false_difference_in_a_table_is_rare(simulations):
    """Between the two that are alike, at any L0 or by area: in at most 5% of experiments."""
    found = [c.differences for c in simulations]
    false = [any(not d.tie for d in of if {d.label, d.other} == {"a", "b"}) for of in found]
    assert np.mean(false) <= 0.05
    told = [all(not d.tie for d in of if "c" in (d.label, d.other)) for of in found]
    assert np.mean(told) > 0.5, "and the one that is worse is found"


@pytest.fixture(scope="module")
def boards():
    """The published board's own documents, architectures and L0s, as benchmarks/comparisons.py draws from them."""
    benchmarks = Path(__file__).parents[2] / "benchmarks" / "comparisons.py"
    spec = importlib.util.spec_from_file_location("comparisons", benchmarks)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module, module.World.read("delta_lm_loss")


@pytest.mark.parametrize(("n_seeds", "ratio"), [(2, 0.3), (2, 5.0), (3, 1.0), (5, 5.0)])
def test_of_tables_drawn_from_the_board_one_in_twenty_has_a_false_difference(boards, n_seeds, ratio):
    """Real tails of documents, and variances between seeds as unequal as the board's."""
    module, world = boards
    found = module.false_differences(world.alike(), 200, "board", ratio, n_seeds, len(world.below))
    assert found["false"] <= 0.05
    assert found["values"] >= 0.93


def test_what_is_far_behind_on_the_board_is_found(boards):
    """relu behind topk, at the board's own differences, with two seeds that have as much variance as documents."""
    module, world = boards
    (told,) = module.power(world, [("relu", "topk")], 100, "board", 1.0, 2, len(world.below))
    assert told >= 0.95


def test_what_has_a_standard_error_alone_is_not_paired():
    """Two architectures with a share of 0.5 +- 0.1 each differ by 0 +- 0.14: nothing may cancel by chance of a seed."""
    records = simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=1)
    for one in records:
        one["metrics"]["share"] = {"better": "down", "headline": True}
        one["scores"]["share"] = {"value": 0.5, "stderr": 0.1, "n": 9, "formula": None, "note": None}
    (comparison,) = comparisons(typed(records), ["share"])
    standings, (difference,) = at(comparison, "share", (30.0,))
    assert [s.estimate.stderr for s in standings[30.0]] == pytest.approx([0.1, 0.1])
    assert difference.estimate.stderr == pytest.approx(0.1 * 2**0.5)


def test_a_mean_over_seeds_is_no_surer_of_the_documents_they_share():
    records = simulated(0, {"a": 0.0}, n_seeds=4)
    for one in records:
        one["scores"]["share"] = {"value": 0.5, "stderr": 0.1, "n": 9, "formula": None, "note": None}
    (comparison,) = comparisons(typed(records), ["share"])
    assert at(comparison, "share", (30.0,))[0][30.0][0].estimate.stderr == pytest.approx(0.1)


@pytest.mark.parametrize("n_documents", [1, 2, MIN_DOCUMENTS - 1])
def test_too_few_documents_tell_nothing_apart(n_documents):
    records = simulated(0, {"a": 0.0, "b": 5.0}, n_seeds=2)
    for one in records:
        one["by_document"] = {name: of[:n_documents] for name, of in one["by_document"].items()}
    (comparison,) = comparisons(typed(records), ["loss"])
    standings, (difference,) = at(comparison, "loss", (20.0,))
    assert difference.estimate.interval() == (-np.inf, np.inf)
    assert np.isnan(difference.estimate.p_value)
    assert difference.tie
    assert not any(s.best for s in standings[20.0])
    text = compare_table.written("text", [comparison], ["loss"], (20.0,))
    assert "± unknown" in text
    assert "*" not in text.partition("\n\n*")[0]
    assert f"{n_documents} document" in text
    assert f"too few for an interval (from {MIN_DOCUMENTS} on): raise --eval-tokens" in text


def test_enough_documents_are_counted_in_the_note():
    records = simulated(0, {"a": 0.0, "b": 5.0}, n_seeds=2)
    for one in records:
        one["by_document"] = {name: of[:MIN_DOCUMENTS] for name, of in one["by_document"].items()}
    found = comparisons(typed(records), ["loss"])
    assert not at(found[0], "loss", (20.0,))[1][0].tie
    note = compare_table.note(found)
    assert f"2 seeds; {MIN_DOCUMENTS} documents. The choice of training data is not in it." in note
    assert "--eval-tokens" not in note


def standing_best(comparison, metric="loss", l0=30.0):
    return {s.label for s in at(comparison, metric, (l0,))[0][l0] if s.best}


def test_nothing_is_marked_where_nothing_is_told_apart():
    (comparison,) = comparisons(typed(simulated(0, {"a": 0.0, "b": 0.0, "c": 0.0})), ["loss"])
    assert standing_best(comparison) == set()


def test_the_worst_is_never_marked_while_a_better_one_is_not():
    """b is a little behind and sure, c is far behind and unsure: not told from a, though b is."""
    records = simulated(0, {"a": 0.0, "b": 0.1, "c": 0.3, "d": 3.0}, n_seeds=1, noise=0.001, document_sd=0.0)
    draw = np.random.default_rng(1)
    of_c = draw.normal(0, 1.0, N_DOCUMENTS)
    for one in records:
        if one["sae"]["label"] == "c":
            tokens = np.asarray(one["by_document"]["tokens"])
            one["by_document"]["added"] = (
                one["by_document"]["added"] + (of_c - of_c @ tokens / tokens.sum()) * tokens
            ).tolist()
    (comparison,) = comparisons(typed(records), ["loss"])
    ties = {(d.label, d.other): d.tie for d in at(comparison, "loss", (30.0,))[1]}
    assert (ties["a", "b"], ties["a", "c"], ties["a", "d"]) == (False, True, False)
    assert standing_best(comparison) == {"a", "b", "c"}


def test_a_metric_that_one_sae_lacks_takes_no_other_metric_away():
    records = simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=2)
    for one in records:
        one["scores"]["share"] = {"value": 0.5, "stderr": 0.1, "n": 9, "formula": None, "note": None}
    records[0]["scores"]["share"] |= {"value": None, "note": "no latent fired"}
    (comparison,) = comparisons(typed(records), ["loss", "share"])
    architecture = next(f for f in comparison.architectures if f.label == "a")
    assert architecture.metrics["loss"].targets == (16.0, 32.0, 64.0)
    assert architecture.metrics["share"].targets == (32.0, 64.0)
    assert architecture.missing == ("a.16.0: share: no latent fired",)
    assert "Missing: a.16.0: share: no latent fired" in compare_table.written("text", [comparison], ["loss"])


def test_runs_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match=r"share no seed \(a: 0; b: 1\)"):
        comparisons(typed([one for one in simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=2)
                if one["sae"]["seed"] == (one["sae"]["label"] == "b")]), ["loss"])  # fmt: skip
    with pytest.raises(UserError, match="in two of the runs"):
        comparisons(typed(simulated(0, {"a": 0.0}) * 2), ["loss"])
    failed = simulated(0, {"a": 0.0}, n_seeds=1)
    for one in failed:
        one |= {"failure": "diverged", "scores": {}, "by_document": {}}
    assert comparisons(typed(failed), ["loss"]) == []


# --- tables and the command line -----------------------------------------------------------------------------------


def test_tables_mark_the_best_and_all_that_are_tied_with_it():
    found = comparisons(typed(simulated(0, {"good_one": 0.0, "same|one": 0.0, "bad": 0.15})), ["loss"])
    text = compare_table.written("text", found, ["loss"], (20.0, 50.0, 500.0))
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(("good", "same", "bad"))}
    assert {label: line.count("*") for label, line in rows.items()} == {"good_one": 3, "same|one": 3, "bad": 0}
    assert "L0 500" not in text, "nothing was measured there"
    assert "5 seeds" in text
    bold = compare_table.written("md", found, ["loss"], (20.0,))
    assert bold.count("**") == 2 * 2 * 2
    assert "same&#124;one" in bold
    tex = compare_table.written("tex", found, ["loss"], (20.0,))
    assert r"good\_one & \textbf{" in tex
    assert tex.count(r"\textbf{") == 4
    assert r"95\% interval" in tex
    facts = compare_table.written("tex", found, ["loss"], (20.0,), "Trained on 5% of it.")
    assert facts.startswith("% Trained on 5% of it.\n")  # a comment
    rows = list(csv.DictReader(io.StringIO(compare_table.written("csv", found, ["loss"], (20.0, 500.0)))))
    assert {(row["l0"], row["value"] != "") for row in rows} == {("20", True), ("500", False), ("area", True)}


def test_who_is_alone_at_an_l0_is_not_the_best():
    (comparison,) = comparisons(typed(simulated(0, {"a": 0.0})), ["loss"])
    assert not any(s.best for s in at(comparison, "loss", (20.0,))[0][20.0])


def test_the_pareto_front_of_all_architectures_is_in_the_table():
    found = comparisons(typed(simulated(0, {"good": 0.0, "bad": 0.5}, n_seeds=2)), ["loss"])
    assert compare_table.on_front(found[0], "loss") == {"bad": [], "good": [16.0, 32.0, 64.0]}
    assert "16, 32, 64" in compare_table.written("text", found, ["loss"], (20.0,))


def test_several_sites_are_summed_up_by_counting_and_not_by_averaging():
    records = simulated(0, {"good": 0.0, "bad": 0.5})
    other = simulated(1, {"good": 0.5, "bad": 0.0})
    for one in other:
        one["sae"]["site"] = {"name": "elsewhere"}
    found = comparisons(typed(records + other), ["loss"])
    (table,) = compare_table.summaries(found, ["loss"], (20.0, 50.0))
    assert "how many L0s best" in table.title
    assert table.header == ["architecture", "elsewhere", "s", "all"]
    assert {label: [text for text, _ in cells] for label, cells in table.rows} == {
        "bad": ["2 of 2", "0 of 2", "2 of 4"], "good": ["0 of 2", "2 of 2", "2 of 4"],
    }  # fmt: skip
    assert table.title in compare_table.written("text", found, ["loss"], (20.0, 50.0))
    assert not list(compare_table.summaries(found[:1], ["loss"], (20.0,)))


def test_the_same_records_give_the_same_bytes():
    records = simulated(0, {"a": 0.0, "b": 0.1})
    assert compare_table.written("csv", comparisons(typed(records), ["loss"]), ["loss"]) == compare_table.written(
        "csv", comparisons(typed(records[::-1]), ["loss"]), ["loss"]
    )


def test_an_unknown_metric_is_refused_with_a_guess():
    with pytest.raises(UserError, match=r'"los".*did you mean "loss"'):
        check_metrics(typed(simulated(0, {"a": 0.0})), ["los"])


def test_failed_saes_are_said_to_be_missing():
    records = simulated(0, {"a": 0.0, "b": 0.0})
    broken = next(r for r in records if r["sae"]["label"] == "a" and r["sae"]["target_l0"] == 16)
    broken |= {"failure": "diverged", "scores": {}}
    (comparison,) = comparisons(typed(records), ["loss"])
    architecture = next(f for f in comparison.architectures if f.label == "a")
    assert architecture.metrics["loss"].targets == (32.0, 64.0)
    assert architecture.missing == (f"{broken['sae']['id']}: diverged",)


def test_a_metric_on_a_tasks_own_text_is_paired_by_the_units_of_that_text():
    draw = np.random.default_rng(0)
    of_set, tokens = draw.normal(0.7, 0.1, 20), np.ones(N_DOCUMENTS)  # sets differ far more than SAEs do
    by_label = {label: of_set + draw.normal(0, 0.01, 20) for label in "ab"}
    of_tokens = [record(label, 16, 0, 16.0, 2 * tokens, tokens) for label in "ab"]
    of_texts = [
        record(label, 16, 0, 16.0, values, np.ones(20)) | {"task": "probes", "measured_on": "texts"}
        for label, values in by_label.items()
    ]
    records = typed([*of_tokens, *of_texts])
    design = Design.of(records, 1, 2)
    assert (design.n_documents, design.n_units, design.n_replicates) == (N_DOCUMENTS, 20, 1 + N_DOCUMENTS + 2 + 20)
    a, b = (metric_replicates(one, "loss", design, i) for i, one in enumerate(records[2:]))
    assert estimate(a, design).stderr == pytest.approx(stats.sem(by_label["a"]))
    paired = difference(a - b, design, 0.0, 4.0, 1)
    assert paired.stderr == pytest.approx(stats.sem(by_label["a"] - by_label["b"]))
    assert paired.stderr < 0.2 * estimate(a, design).stderr
    tokens_alone = metric_replicates(records[0], "loss", design)
    assert set(tokens_alone[design.units]) == {2.0}  # no set left out changes what tokens say
    both = document_variance(a + metric_replicates(records[0], "l0", design), design)
    assert both[0] == pytest.approx(stats.sem(by_label["a"]) ** 2)
