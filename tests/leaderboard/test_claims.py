"""Claims are judged by intervals: planted truths are found, what is at a limit is rarely said to be past it."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import exactly, rarely, record, simulated
from synthetic import at, typed
from synthetic import records as synthetic_records

from sae_bench.leaderboard.claims import ABOUT, METRICS, WIDE_ENOUGH, check_claims
from sae_bench.leaderboard.compare import comparisons
from sae_bench.leaderboard.verdicts import contrast, judged, not_worse, within
from sae_bench.records.schema import read_record

RESULTS = Path(__file__).parents[2] / "results"


def test_the_rule_by_hand():
    """Student's t with 20 degrees: 2.086 at 95%, 2.423 at 97.5%, which is 95% for two together."""
    assert judged("c", [("a", exactly(-2.09))], -math.inf, 0).verdict == "holds"
    assert judged("c", [("a", exactly(-2.08))], -math.inf, 0).verdict == "cannot tell"
    assert judged("c", [("a", exactly(2.09))], -math.inf, 0).verdict == "does not hold"
    two = [("a", exactly(2.40)), ("b", exactly(-9))]
    assert judged("c", two, -math.inf, 0).verdict == "cannot tell", "one of two is at 97.5%"
    assert judged("c", [("a", exactly(2.43)), *two[1:]], -math.inf, 0).verdict == "does not hold"
    assert judged("c", [("a", exactly(-2.09)), *two[1:]], -math.inf, 0).verdict == "holds", (
        "all together: no correction"
    )
    assert judged("c", two, -math.inf, 0).numbers == (
        "wanted: at most 0; holds if every 95% interval is inside, does not hold if one 97.5% interval (95% for 2 "
        "together) is outside",
        "a = 2.4, 95% [0.314, 4.486], 97.5% [-0.02312, 4.823]",
        "b = -9, 95% [-11.09, -6.914], 97.5% [-11.42, -6.577]",
    )


@pytest.mark.parametrize("n", [1, 2, 4])
def test_with_the_truth_at_the_limit_nothing_is_said_more_than_one_time_in_forty(n):
    """Either way, of one number and of several independent ones, all of which lie at the limit."""
    draw, n_experiments = np.random.default_rng(n), 2000
    values = draw.normal(size=(n_experiments, n))
    errors = np.sqrt(draw.chisquare(20, size=values.shape) / 20)
    found = [
        judged("c", [("a", exactly(*of)) for of in zip(*one, strict=True)], -math.inf, 0).verdict
        for one in zip(values, errors, strict=True)
    ]
    assert found.count("holds") / n_experiments <= rarely(n_experiments)
    assert found.count("does not hold") / n_experiments <= rarely(n_experiments)


def test_an_unknown_uncertainty_tells_nothing():
    finding = judged("c", [("a", exactly(-5.0, math.inf))], -math.inf, 0)
    assert finding.verdict == "cannot tell"
    assert finding.numbers[1] == "a = -5, its uncertainty is unknown"


def verdict_of(numbers, low, high):
    """The verdict by what is printed alone: the first interval of each number, and the last."""
    intervals = [re.findall(r"\[(\S+), (\S+)\]", number) for number in numbers if " = " in number]
    each, family = ([tuple(map(float, of[place])) if of else (-math.inf, math.inf) for of in intervals]
                    for place in (0, -1))  # fmt: skip
    if any(b < low or a > high for a, b in family):
        return "does not hold"
    return "holds" if each and all(low <= a and b <= high for a, b in each) else "cannot tell"


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(1e-6, 2) | st.just(math.inf), st.sampled_from([1.0, 4.0, 80.0])),
             min_size=1, max_size=4),
    st.sampled_from([(-math.inf, 0.0), (0.0, math.inf), (-0.05, 0.05), (0.8, 0.95)]),
)  # fmt: skip
def test_no_verdict_contradicts_the_intervals_that_are_printed(found, limits):
    finding = judged("c", [(f"L0 {i}: x", exactly(*of)) for i, of in enumerate(found)], *limits)
    assert finding.verdict == verdict_of(finding.numbers, *limits)


@pytest.mark.parametrize("upper", [0.0500001, 0.0499999])
def test_an_end_that_rounds_to_the_limit_is_judged_as_it_is_printed(upper):
    finding = judged("c", [("a", exactly(upper - 2.0859634, 1.0))], -math.inf, 0.05)
    assert "0.05]" in finding.numbers[1]
    assert finding.verdict == "holds"


@pytest.mark.parametrize(
    "board",
    [None, *sorted(path.parent for path in RESULTS.glob("gemma-3-270m*/records"))],
    ids=lambda of: of and of.name,
)
def test_no_claim_contradicts_what_it_prints(board):
    """Limits as they are printed, too; of published boards, and of records that were made up."""
    if board is None:
        of = typed(synthetic_records(targets=(16.0, 64.0)))
    else:
        of = [read_record(path) for path in sorted(board.glob("records/*.json"))]
    checked = 0
    for _, finding in check_claims(comparisons(of, METRICS), (20.0, 50.0)):
        if finding.numbers[0].startswith("wanted"):
            words = finding.numbers[0].partition(";")[0].split()[1:]
            low, high = float(words[1]) if words[0] == "from" else -math.inf, float(words[-1])
            if words[1] == "least":
                low, high = high, math.inf
            assert finding.verdict == verdict_of(finding.numbers, low, high), finding
            checked += 1
        else:
            assert finding.verdict == "cannot tell"
    alone = "jumprelu" not in {record.sae.arch for record in of}
    assert checked >= (2 if alone else 4), "of topk alone: dead latents, and shrinkage"


# --- one architecture against another ------------------------------------------------------------------------------


@pytest.mark.parametrize(("effect", "verdict"), [(-0.15, "holds"), (0.15, "does not hold"), (0.002, "cannot tell")])
def test_a_claim_holds_or_not_as_planted(effect, verdict):
    (comparison,) = comparisons(typed(simulated(2, {"mine": effect, "other": 0.0}, seed_sd=0.01)), ["loss"])
    finding = not_worse("loss", "down", "mine", "other", "claim")(comparison, (20.0, 50.0))
    assert finding.verdict == verdict
    assert len(finding.numbers) == 1 + 2
    about = not_worse("loss", "down", "mine", "other", "claim", about=0.1)(comparison, (20.0, 50.0))
    assert about.verdict == {"cannot tell": "holds"}.get(verdict, verdict), "within a tenth is about as good"
    upside_down = not_worse("loss", "up", "mine", "other", "claim")(comparison, (20.0, 50.0))
    assert upside_down.verdict == {"holds": "does not hold", "does not hold": "holds"}.get(verdict, upside_down.verdict)


def test_what_cannot_be_told_is_said_why():
    (comparison,) = comparisons(typed(simulated(2, {"mine": 0.0, "other": 0.0})), ["loss", "gamma_centred"])
    found = {
        "no absent among mine, other": not_worse("loss", "down", "mine", "absent", "claim")(comparison, (20.0,)),
        "loss: none of L0 1000, 2000 lies in the range of all": not_worse("loss", "down", "mine", "other", "claim")(
            comparison, (1000.0, 2000.0)
        ),
        "gamma_centred is in no record: not measured by what made them (t 1)": within(
            "gamma_centred", "mine", 0.8, 0.95, "claim"
        )(comparison, (20.0,)),
    }
    for reason, finding in found.items():
        assert (finding.verdict, finding.numbers) == ("cannot tell", (reason,))
    (one_seed,) = comparisons(typed(simulated(2, {"mine": 0.0, "other": 0.0}, n_seeds=1)), ["loss"])
    finding = not_worse("loss", "down", "mine", "other", "claim")(one_seed, (20.0,))
    assert finding.numbers[-1] == "one seed: the intervals cover the choice of documents alone"


def test_a_contrast_is_taken_replicate_by_replicate():
    """What makes a document hard for both cancels, and of a margin the other's own uncertainty stays."""
    (comparison,) = comparisons(typed(simulated(1, {"a": 0.3, "b": 0.0}, document_sd=1.0, seed_sd=0.0)), ["loss"])
    plain, wide = (contrast(comparison, "loss", 30.0, {"a": 1.0, "b": -factor}) for factor in (1.0, 1.5))
    (difference,) = at(comparison, "loss", (30.0,))[1]
    assert plain.value == pytest.approx(difference.estimate.value)
    alone = contrast(comparison, "loss", 30.0, {"b": 1.0})
    assert wide.value == pytest.approx(plain.value - 0.5 * alone.value)
    assert wide.stderr == pytest.approx(0.5 * alone.stderr, rel=0.1)
    assert plain.stderr < 0.2 * alone.stderr
    assert contrast(comparison, "loss", 1000.0, {"a": 1.0}) is None
    assert contrast(comparison, "absent", 30.0, {"a": 1.0}) is None


def test_a_standard_error_of_zero_is_not_certainty():
    records = simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=2)
    for one in records:
        value, stderr = (0.01, 0.0) if one["sae"]["label"] == "a" else (0.5, 0.001)
        one["scores"]["share"] = {"value": value, "stderr": stderr, "n": 9, "formula": None, "note": None}
        one["metrics"]["share"] = {"better": "down", "headline": True}
    (comparison,) = comparisons(typed(records), ["share", "loss"])
    for check in (within("share", "a", -1, 0.02, "c"), within("share", "a", 0.5, 1, "c"),
                  not_worse("share", "down", "a", "b", "c"), not_worse("share", "down", "b", "a", "c")):  # fmt: skip
        finding = check(comparison, (20.0,))
        assert finding.verdict == "cannot tell"
        assert finding.numbers[1].endswith("its uncertainty is unknown")
    assert math.isfinite(contrast(comparison, "loss", 20.0, {"a": 1.0}).stderr)
    assert math.isinf(contrast(comparison, "share", 20.0, {"b": 1.0, "a": -1.0}).stderr), (
        "of one that is unknown and one not"
    )


def test_two_that_are_the_same_to_the_last_bit_are_not_certainly_alike():
    records = simulated(0, {"a": 0.0}, n_seeds=2)
    for one in list(records):
        of = one["sae"] | {"label": "b", "arch": "b", "id": one["sae"]["id"].replace("a", "b", 1)}
        records.append(one | {"sae": of})
    (comparison,) = comparisons(typed(records), ["loss"])
    assert math.isinf(contrast(comparison, "loss", 20.0, {"a": 1.0, "b": -1.0}).stderr)
    assert not_worse("loss", "down", "a", "b", "claim")(comparison, (20.0,)).verdict == "cannot tell"


L0S = (20.0, 50.0)


def experiment(seed, factor, n_seeds=5, seed_sd=0.005, noise=0.1):
    """`a` loses `factor` times what `b` loses, at every L0; documents are hard for both, seeds add to each."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(50, 150, 60).astype(float)
    of_document = draw.normal(0, 0.2, 60)
    records = []
    for label, times in {"a": factor, "b": 1.0}.items():
        for run in range(n_seeds):
            of_seed = draw.normal(0, seed_sd)
            for target in (16, 64):
                level = times * (1 - np.log10(target) / 4 + of_document) + of_seed
                records.append(record(label, target, run, target, (level + draw.normal(0, noise, 60)) * tokens, tokens))
    return records


def old_rule(comparison, about):
    """p against zero, and a point estimate beyond the margin."""
    standings, differences = at(comparison, "loss", L0S)
    height = {l0: next(s.estimate.value for s in of if s.label == "b") for l0, of in standings.items()}
    return any(d.estimate.p_value <= 0.05 and d.estimate.value > about * height[d.l0] for d in differences)


def test_with_the_true_difference_at_the_margin_neither_verdict_is_more_frequent_than_one_in_forty():
    """1,000 experiments, two L0s. A rule of p against zero and a point estimate beyond the margin fails it."""
    n, check = 1000, not_worse("loss", "down", "a", "b", "claim", about=ABOUT)
    verdicts, by_the_old_rule = [], 0
    for seed in range(n):
        (comparison,) = comparisons(typed(experiment(seed, 1 + ABOUT)), ["loss"])
        verdicts.append(check(comparison, L0S).verdict)
        by_the_old_rule += old_rule(comparison, ABOUT)
    assert verdicts.count("does not hold") / n <= rarely(n)
    assert verdicts.count("holds") / n <= rarely(n)
    assert by_the_old_rule / n > 0.4


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "holds"), (1.2, "does not hold")])
def test_what_is_well_inside_or_outside_the_margin_is_found(factor, verdict):
    check = not_worse("loss", "down", "a", "b", "claim", about=ABOUT)
    found = []
    for seed in range(100):
        (comparison,) = comparisons(typed(experiment(seed, factor, noise=0.05)), ["loss"])
        found.append(check(comparison, L0S).verdict)
    assert found.count(verdict) > 80


def test_a_claim_finds_its_architecture_under_the_one_choice_of_settings_that_is_there():
    check = not_worse("loss", "down", "mine", "other", "claim")
    (comparison,) = comparisons(typed(simulated(2, {"mine:lr=0.1": -0.15, "other": 0.0}, seed_sd=0.01)), ["loss"])
    finding = check(comparison, (20.0,))
    assert finding.verdict == "holds"
    assert "mine:lr=0.1 - other" in finding.numbers[1]
    several = {"mine:lr=0.1": -0.15, "mine:lr=0.2": 0.0, "other": 0.0}
    (comparison,) = comparisons(typed(simulated(2, several, seed_sd=0.01)), ["loss"])
    assert check(comparison, (20.0,)).verdict == "cannot tell", "which of the two is meant, nobody said"


# --- ranges --------------------------------------------------------------------------------------------------------


def test_a_range_is_kept_missed_or_not_told():
    (comparison,) = comparisons(typed(simulated(3, {"a": 0.0}, document_sd=0.01, seed_sd=0.001)), ["loss"])
    value = at(comparison, "loss", (30.0,))[0][30.0][0].estimate.value
    ranges = {
        "holds": (value - 0.1, value + 0.1),
        "does not hold": (value + 0.1, value + 0.2),
        "cannot tell": (value, value + 1),
    }
    for verdict, (low, high) in ranges.items():
        assert within("loss", "a", low, high, "claim")(comparison, (30.0,)).verdict == verdict


def test_what_is_said_of_one_value_with_two_seeds_is_as_sure_as_its_level():
    """1,000 experiments in which seeds matter most: with the weights of tables' intervals 48 miss, where 25 may."""
    truth, outside = 1 - np.log10(32) / 4, 0
    for i in range(1000):
        of = simulated(i, {"a": 0.0}, n_seeds=2, seed_sd=0.2, targets=(32,))
        (comparison,) = comparisons(typed(of), ["loss"])
        low, high = contrast(comparison, "loss", 32.0, {"a": 1.0}).interval(0.975)
        outside += not low <= truth <= high
    assert outside / 1000 <= 0.03


def test_a_dictionary_too_narrow_for_a_share_is_not_asked():
    (comparison,) = comparisons(typed(simulated(3, {"a": 0.0})), ["loss"])
    finding = within("loss", "a", -1, 6e-4, "claim", least_width=WIDE_ENOUGH)(comparison, (30.0,))
    assert finding.verdict == "cannot tell"
    assert finding.numbers == ("one latent of 8 is 12.50%: only dictionaries of 8,334 or more can tell",)
    wide = simulated(3, {"a": 0.0})
    for one in wide:
        one["sae"]["d_sae"] = WIDE_ENOUGH
    (comparison,) = comparisons(typed(wide), ["loss"])
    assert within("loss", "a", -1, 6e-4, "c", least_width=WIDE_ENOUGH)(comparison, (30.0,)).verdict == "does not hold"


def test_shrinkage_is_judged_about_the_mean():
    of = synthetic_records(targets=(16.0, 64.0))
    verdicts = {f.claim.partition(":")[0]: f for _, f in check_claims(comparisons(typed(of), METRICS), (20.0, 50.0))}
    assert verdicts["relu shrinks"].verdict == "holds"
    assert all(verdicts[f"{arch} does not shrink"].verdict == "holds" for arch in ("gated", "topk", "jumprelu"))
    for one in of:  # as version 1 of the task left them
        for part in ("scores", "metrics"):
            one[part].pop("gamma_centred", None)
    old = {f.claim.partition(":")[0]: f for _, f in check_claims(comparisons(typed(of), METRICS), (20.0, 50.0))}
    assert old["relu shrinks"].verdict == "cannot tell"
    assert old["relu shrinks"].numbers[0].startswith("gamma_centred is in no record: not measured by what made them")
