"""Statistics with known answers: planted differences are found, planted ties are not, intervals cover."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulated import N_DOCUMENTS, simulated
from synthetic import at, typed

from sae_bench.errors import UserError
from sae_bench.leaderboard import compare_table
from sae_bench.leaderboard.bootstrap import (
    MIN_DOCUMENTS,
    Design,
    Estimate,
    seed_variance,
)
from sae_bench.leaderboard.compare import compare, comparisons
from sae_bench.leaderboard.curves import at_l0


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
