"""Statistics with known answers: planted differences are found, planted ties are not, intervals cover."""

import csv
import io

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import PchipInterpolator

from sae_bench.errors import UserError
from sae_bench.leaderboard import compare_table
from sae_bench.leaderboard.bootstrap import (
    Estimate,
    Weights,
    _weight_of_seeds,
    estimate,
    holm,
    metric_replicates,
    over_seeds,
)
from sae_bench.leaderboard.compare import at, by_area, check_metrics, panels
from sae_bench.leaderboard.curves import area, at_l0, common_range, pareto_front

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


def test_a_bootstrapped_ratio_has_the_error_of_the_linearised_one():
    from sae_bench.evaluation.stderr import ratio_stderr

    draw = np.random.default_rng(0)
    tokens = draw.integers(50, 150, 400).astype(float)
    sums = tokens * draw.normal(1, 0.4, 400)
    one = record("a", 16, 0, 16.0, sums, tokens)
    weights = Weights.draw(1, 400, n_replicates=4000)
    found = estimate(metric_replicates(one, "loss", weights), weights)
    assert found.value == pytest.approx(sums.sum() / tokens.sum(), rel=1e-12)
    assert found.stderr == pytest.approx(ratio_stderr(sums, tokens), rel=0.04)
    assert not found.over_seeds


def test_seeds_alone_give_students_interval_of_their_mean():
    values = np.array([1.0, 1.4, 0.7, 1.2])
    weights = Weights.draw(4, 2, n_replicates=20_000)
    replicates = over_seeds([np.full(len(weights.seeds), value) for value in values], weights)
    found = estimate(replicates, weights)
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(stats.sem(values), rel=0.03)
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert found.interval() == pytest.approx((low, high), rel=0.03)
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.2)


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


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
    (panel,) = panels(simulated(0, {"good": 0.0, "same": 0.0, "bad": 0.15}), ["loss"])
    standings, differences = at(panel, "loss", (20.0, 50.0, 100.0))
    for l0 in (20.0, 50.0):
        assert {s.label for s in standings[l0] if s.best} == {"good", "same"}
        values = {s.label: s.estimate.value for s in standings[l0]}
        assert values["bad"] - values["good"] == pytest.approx(0.15, abs=0.05)
    assert all(s.estimate is None for s in standings[100.0]), "nothing is extrapolated"
    ties = {(d.label, d.other): d.tie for d in differences if d.l0 == 20.0}
    assert ties == {("bad", "good"): False, ("bad", "same"): False, ("good", "same"): True}
    between, by, _ = by_area(panel, "loss")
    assert between == (16.0, 64.0)
    assert {s.label for s in by if s.best} == {"good", "same"}


def test_pairing_on_documents_makes_differences_far_surer_than_values():
    (panel,) = panels(simulated(1, {"a": 0.0, "b": 0.0}, document_sd=1.0), ["loss"])
    standings, (difference,) = at(panel, "loss", (30.0,))
    assert difference.estimate.stderr < 0.2 * standings[30.0][0].estimate.stderr


def test_one_seed_says_nothing_of_seeds():
    (panel,) = panels(simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=1), ["loss"])
    standings, _ = at(panel, "loss", (20.0,))
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
    n = 1000
    for i in range(n):
        draw = np.random.default_rng(i)
        weights = Weights.draw(n_seeds, 64, n_replicates=200, seed=i)
        of_document = draw.normal(0.1, 0.2, 64)
        seeds = draw.normal(0, 0.03, n_seeds)
        by_seed = [weights.documents @ (of_document + seed) / 64 for seed in seeds]
        low, high = estimate(over_seeds(by_seed, weights), weights).interval()
        covered += low <= 0.1 <= high
    assert 0.93 <= covered / n <= 0.97


PLANTED = {"a": 0.0, "b": 0.0, "c": 0.3}
SIMULATIONS = 1000


@pytest.fixture(scope="module")
def simulations():
    """Whole comparisons - records, curves, L0s, pairs - of simulated experiments: two alike, one worse by 0.3."""
    found = []
    for i in range(SIMULATIONS):
        (panel,) = panels(simulated(i, PLANTED, n_seeds=3, document_sd=0.1), ["loss"], n_replicates=100)
        found.append(at(panel, "loss", (20.0, 50.0)))
    return found


def test_intervals_of_planted_differences_cover(simulations):
    covered = []
    for _, differences in simulations:
        for d in differences:
            low, high = d.estimate.interval()
            covered.append(low <= PLANTED[d.label] - PLANTED[d.other] <= high)
    assert len(covered) == SIMULATIONS * 2 * 3
    assert 0.93 <= np.mean(covered) <= 0.97


def test_intervals_of_curves_at_matched_l0_cover(simulations):
    """The truth at an L0 is the curve through the targets' true heights: the interpolation is part of the measure."""
    targets = np.array([[16.0, 32.0, 64.0]])
    truth = dict(zip((20.0, 50.0), at_l0(targets, 1 - np.log10(targets) / 4, (20.0, 50.0))[0], strict=True))
    covered = []
    for standings, _ in simulations:
        for l0, of in standings.items():
            for s in of:
                low, high = s.estimate.interval()
                covered.append(low <= truth[l0] + PLANTED[s.label] <= high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_any_false_difference_in_a_table_is_rare(simulations):
    """Between the two that are alike, at any L0, after Holm's correction: in at most 5% of experiments."""
    false = [any(not d.tie for d in differences if {d.label, d.other} == {"a", "b"}) for _, differences in simulations]
    assert np.mean(false) <= 0.05
    found = [all(not d.tie for d in differences if "c" in (d.label, d.other)) for _, differences in simulations]
    assert np.mean(found) > 0.5, "and the one that is worse is found"


def test_what_has_a_standard_error_alone_is_not_paired():
    """Two architectures with a share of 0.5 +- 0.1 each differ by 0 +- 0.14: nothing may cancel by chance of a seed."""
    records = simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=1)
    for one in records:
        one["metrics"]["share"] = {"better": "down", "headline": True}
        one["scores"]["share"] = {"value": 0.5, "stderr": 0.1, "n": 9, "formula": None, "note": None}
    (panel,) = panels(records, ["share"])
    standings, (difference,) = at(panel, "share", (30.0,))
    assert [s.estimate.stderr for s in standings[30.0]] == pytest.approx([0.1, 0.1], rel=0.1)
    assert difference.estimate.stderr == pytest.approx(0.1 * 2**0.5, rel=0.1)


def test_a_mean_over_seeds_is_no_surer_of_the_documents_they_share():
    records = simulated(0, {"a": 0.0}, n_seeds=4)
    for one in records:
        one["scores"]["share"] = {"value": 0.5, "stderr": 0.1, "n": 9, "formula": None, "note": None}
    (panel,) = panels(records, ["share"])
    assert at(panel, "share", (30.0,))[0][30.0][0].estimate.stderr == pytest.approx(0.1, rel=0.1)


def test_one_document_tells_nothing_apart():
    records = simulated(0, {"a": 0.0, "b": 5.0}, n_seeds=1)
    for one in records:
        one["by_document"] = {name: [sum(of)] for name, of in one["by_document"].items()}
    (panel,) = panels(records, ["loss"])
    _, (difference,) = at(panel, "loss", (20.0,))
    assert (difference.estimate.interval(), difference.p_value) == ((-np.inf, np.inf), 1.0)
    assert "unknown" in compare_table.terminal([panel], ["loss"], (20.0,))


def test_a_metric_that_one_sae_lacks_takes_no_other_metric_away():
    records = simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=2)
    for one in records:
        one["scores"]["share"] = {"value": 0.5, "stderr": 0.1, "n": 9, "formula": None, "note": None}
    records[0]["scores"]["share"] |= {"value": None, "note": "no latent fired"}
    (panel,) = panels(records, ["loss", "share"])
    family = next(f for f in panel.families if f.label == "a")
    assert family.metrics["loss"].targets == (16.0, 32.0, 64.0)
    assert family.metrics["share"].targets == (32.0, 64.0)
    assert family.missing == ("a.16.0: share: no latent fired",)
    assert "Missing: a.16.0: share: no latent fired" in compare_table.terminal([panel], ["loss"])


def test_runs_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match=r"share no seed \(a: 0; b: 1\)"):
        panels([one for one in simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=2)
                if one["sae"]["seed"] == (one["sae"]["label"] == "b")], ["loss"])  # fmt: skip
    with pytest.raises(UserError, match="in two of the runs"):
        panels(simulated(0, {"a": 0.0}) * 2, ["loss"])
    failed = simulated(0, {"a": 0.0}, n_seeds=1)
    for one in failed:
        one |= {"failure": "diverged", "scores": {}, "by_document": {}}
    assert panels(failed, ["loss"]) == []


# --- tables and the command line -----------------------------------------------------------------------------------


def test_tables_mark_the_best_and_all_that_are_tied_with_it():
    found = panels(simulated(0, {"good_one": 0.0, "same|one": 0.0, "bad": 0.15}), ["loss"])
    text = compare_table.terminal(found, ["loss"], (20.0, 50.0, 500.0))
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(("good", "same", "bad"))}
    assert {label: line.count("*") for label, line in rows.items()} == {"good_one": 3, "same|one": 3, "bad": 0}
    assert "L0 500" not in text, "nothing was measured there"
    assert "5 seeds" in text
    bold = compare_table.markdown(found, ["loss"], (20.0,))
    assert bold.count("**") == 2 * 2 * 2
    assert "same&#124;one" in bold
    tex = compare_table.latex(found, ["loss"], (20.0,))
    assert r"good\_one & \textbf{" in tex
    assert tex.count(r"\textbf{") == 4
    assert r"95\% interval" in tex
    facts = compare_table.latex(found, ["loss"], (20.0,), "Trained on 5% of it.")
    assert r"Trained on 5\% of it." in facts
    rows = list(csv.DictReader(io.StringIO(compare_table.csv(found, ["loss"], (20.0, 500.0)))))
    assert {(row["l0"], row["value"] != "") for row in rows} == {("20", True), ("500", False), ("area", True)}


def test_who_is_alone_at_an_l0_is_not_the_best():
    (panel,) = panels(simulated(0, {"a": 0.0}), ["loss"])
    assert not any(s.best for s in at(panel, "loss", (20.0,))[0][20.0])


def test_the_pareto_front_of_all_architectures_is_in_the_table():
    found = panels(simulated(0, {"good": 0.0, "bad": 0.5}, n_seeds=2), ["loss"])
    assert compare_table.on_front(found[0], "loss") == {"bad": [], "good": [16.0, 32.0, 64.0]}
    assert "16, 32, 64" in compare_table.terminal(found, ["loss"], (20.0,))


def test_several_sites_are_summed_up_by_counting_and_not_by_averaging():
    records = simulated(0, {"good": 0.0, "bad": 0.5})
    other = simulated(1, {"good": 0.5, "bad": 0.0})
    for one in other:
        one["sae"]["site"] = {"name": "elsewhere"}
    found = panels(records + other, ["loss"])
    ((title, header, rows),) = compare_table.summaries(found, ["loss"], (20.0, 50.0))
    assert "how many L0s best" in title
    assert header == ["architecture", "elsewhere", "s", "all"]
    assert {label: [text for text, _ in cells] for label, cells in rows} == {
        "bad": ["2 of 2", "0 of 2", "2 of 4"], "good": ["0 of 2", "2 of 2", "2 of 4"],
    }  # fmt: skip
    assert title in compare_table.terminal(found, ["loss"], (20.0, 50.0))
    assert not list(compare_table.summaries(found[:1], ["loss"], (20.0,)))


def test_the_same_records_give_the_same_bytes():
    records = simulated(0, {"a": 0.0, "b": 0.1})
    assert compare_table.csv(panels(records, ["loss"]), ["loss"]) == compare_table.csv(
        panels(records[::-1], ["loss"]), ["loss"]
    )


def test_an_unknown_metric_is_refused_with_a_guess():
    with pytest.raises(UserError, match=r'"los".*did you mean "loss"'):
        check_metrics(simulated(0, {"a": 0.0}), ["los"])


def test_failed_saes_are_said_to_be_missing():
    records = simulated(0, {"a": 0.0, "b": 0.0})
    broken = next(r for r in records if r["sae"]["label"] == "a" and r["sae"]["target_l0"] == 16)
    broken |= {"failure": "diverged", "scores": {}}
    (panel,) = panels(records, ["loss"])
    family = next(f for f in panel.families if f.label == "a")
    assert family.metrics["loss"].targets == (32.0, 64.0)
    assert family.missing == (f"{broken['sae']['id']}: diverged",)
