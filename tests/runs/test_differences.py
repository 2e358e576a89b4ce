"""What `verify` takes for rounding on texts, and what for an edited record."""

import numpy as np
import pytest
from simulated import record
from synthetic import typed

from sae_bench.evaluation.stderr import mean_stderr
from sae_bench.evaluation.task import Result
from sae_bench.records.schema import Score
from sae_bench.runs.differences import FEWEST_UNITS, TEXT_TOLERANCE
from sae_bench.runs.differences import difference_on_texts as difference

N_SETS = 20


def measured(auc, **error):
    """A result of probes with these areas, one a set."""
    auc = np.asarray(auc)
    score = Score(float(auc.mean()), error.get("stderr", mean_stderr(auc)), 800, "auc / sets")
    return Result({"auc": score}, {"auc": auc.tolist(), "sets": [1.0] * len(auc)})


def recorded(auc, **error):
    (of,) = typed([record("topk", 16.0, 0, 16.0, [1.0], [1.0])])
    result = measured(auc, **error)
    return of.model_copy(update={"scores": result.scores, "by_document": result.by_document})


def difference_on_sets(result, record):
    return difference(result, record, chosen_units=False)


def difference_on_letters(result, record):
    return difference(result, record, chosen_units=True)


@pytest.fixture
def auc():
    return np.random.default_rng(0).uniform(0.55, 0.8, N_SETS)


def test_what_was_measured_again_to_the_bit_is_as_recorded(auc):
    assert difference_on_sets(measured(auc), recorded(auc)) is None


def test_rounding_may_move_single_sets_far_and_is_told_from_an_edit_once_in_ten_thousand(auc):
    """As it does on a machine without products in bfloat16: a set in five by .1, to either side."""
    found = 0
    for seed in range(300):
        draw = np.random.default_rng(seed)
        moved = draw.normal(0, 0.003, N_SETS) + (draw.random(N_SETS) < 0.2) * draw.normal(0, 0.05, N_SETS)
        found += difference_on_sets(measured(auc + moved), recorded(auc)) is not None
    assert found == 0


@pytest.mark.parametrize("by", [0.01, -0.01])
def test_a_little_to_one_side_in_every_set_is_no_rounding(auc, by):
    moved = auc + by + np.random.default_rng(1).normal(0, 0.003, N_SETS)
    assert "auc is " in difference_on_sets(measured(auc), recorded(moved))
    assert "which is no rounding (p = " in difference_on_sets(measured(auc), recorded(auc + by))


def test_a_few_sets_that_were_made_much_better_are_found_by_their_mean(auc):
    better = auc.copy()
    better[:4] = 1.0
    better[4:8] += 0.2
    assert (better - auc).mean() > TEXT_TOLERANCE
    assert "the record has" in difference_on_sets(measured(auc), recorded(better))


def test_fewer_units_than_tell_a_side_are_held_by_their_mean_alone():
    few = np.full(FEWEST_UNITS - 1, 0.6)
    assert difference_on_sets(measured(few), recorded(few + 0.01)) is None
    assert "the record has" in difference_on_sets(measured(few), recorded(few + 0.1))


def test_an_error_that_is_not_that_of_the_records_own_units_is_found(auc):
    assert "the error of auc is 0.0001" in difference_on_sets(measured(auc), recorded(auc, stderr=0.0001))
    assert "the error of auc is None" in difference_on_sets(measured(auc), recorded(auc, stderr=None))


@pytest.mark.parametrize(("of_now", "of_then"), [(slice(1, None), slice(None)), (slice(None), slice(2, None))])
def test_where_other_letters_are_scored_those_that_both_have_are_held(auc, of_now, of_then):
    """Rounding brings a letter's probe over the F1 from which letters are scored; whoever drops one hides nothing."""
    assert difference_on_letters(measured(auc[of_now]), recorded(auc[of_then])) is None
    assert "which is no rounding" in difference_on_letters(measured(auc[of_now]), recorded(auc[of_then] + 0.01))
    assert "which is no rounding" in difference_on_letters(measured(auc[of_now]), recorded(auc[of_then] - 0.01))


def test_more_units_than_rounding_brings_are_refused(auc):
    said = "the record has 17 units of the text, 20 are measured"
    assert difference_on_letters(measured(auc), recorded(auc[3:])) == said
    assert difference_on_letters(measured(auc[3:]), recorded(auc)).startswith("the record has 20")
    torn = recorded(auc)
    torn.by_document["sets"] = [1.0] * 3
    assert difference_on_letters(measured(auc), torn) == "the record has 3, 20 units of the text, 20 are measured"


def test_a_set_that_was_dropped_is_missed_for_no_rounding_chooses_sets(auc):
    said = "the record has 19 units of the text, 20 are measured"
    assert difference_on_sets(measured(auc), recorded(auc[1:])) == said


def test_a_score_that_was_made_of_another_ones_sums_is_found(auc):
    forged = recorded(auc)
    forged.by_document["f1"] = (auc + 0.02).tolist()
    result = measured(auc)
    result.by_document["f1"] = (auc + 0.02).tolist()
    score = forged.scores["auc"]
    forged.scores["auc"] = Score(score.value + 0.02, score.stderr, score.n, "f1 / sets")
    assert difference_on_sets(result, forged) == "auc is auc / sets, the record has f1 / sets"


def test_units_that_only_one_of_the_two_has_are_named(auc):
    without = recorded(auc)
    del without.by_document["sets"]
    assert difference_on_sets(measured(auc), without) == "sets is not in the record"
    more = recorded(auc)
    more.by_document["f1"] = more.by_document["auc"]
    assert difference_on_sets(measured(auc), more) == "f1 is only in the record"
