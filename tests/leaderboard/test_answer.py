"""The answer of a board: the sentence says what the comparison shows, and nothing that it does not."""

import pytest
from synthetic import EFFECT, records, typed

from sae_bench.leaderboard.answer import over_settings, verdicts
from sae_bench.leaderboard.compare import compare, comparisons

METRIC, L0S = "delta_lm_loss", (20.0, 50.0)


def said(of, metric=METRIC):
    return verdicts(comparisons(typed(of), [metric]), metric, L0S)


def test_the_first_is_the_best_by_area_and_the_others_stand_where_the_comparison_puts_them():
    (comparison,) = comparisons(typed(records()), [METRIC])
    (verdict,) = verdicts([comparison], METRIC, L0S)
    standings = compare(comparison, METRIC, L0S).standings[None]
    best = min(standings, key=lambda one: one.estimate.value)
    assert verdict.first == best.label == "jumprelu"
    assert verdict.sentence.startswith("jumprelu adds the least loss to the language model over L0 ")
    tied, worse = ({one.label for one in standings if one.best == of} - {"jumprelu"} for of in (True, False))
    assert worse >= {"relu"}
    not_told, _, rest = verdict.sentence.partition("not told apart from it")
    assert all(name in (not_told if tied else verdict.sentence) for name in tied)
    assert all(name in (rest or verdict.sentence) for name in worse)
    assert verdict.numbers.startswith("L0 20: jumprelu ")
    assert verdict.caveat == ""


def test_higher_is_better_where_the_metric_says_so():
    (verdict,) = said(records(), "fve")
    assert verdict.sentence.startswith("jumprelu explains the most variance over")


def test_of_architectures_that_are_alike_none_is_told_apart(monkeypatch):
    monkeypatch.setitem(EFFECT, "relu", 0.0)
    monkeypatch.setitem(EFFECT, "gated", 0.0)
    (verdict,) = said(records(("gated", "relu")))
    assert verdict.sentence.endswith("but no architecture is told apart from it.")


@pytest.mark.parametrize(
    ("of", "sentence", "caveat"),
    [
        (records(("topk",)), "Only topk was measured: there is nothing to compare.", "--arch"),
        (
            [*records(("topk",), (4.0, 8.0)), *records(("relu",), (100.0, 200.0))],
            "No two architectures were measured around one L0: nothing can be compared.",
            "--l0",
        ),
    ],
)
def test_where_nothing_can_be_compared_it_says_so_and_what_to_do(of, sentence, caveat):
    (verdict,) = said(of)
    assert verdict.sentence == sentence
    assert caveat in verdict.caveat


def failed(of, label):
    """The records, of which those of one architecture are of failures."""
    return [one | {"failure": "diverged", "scores": {}, "by_document": {}, "per_latent": {}, "details": {}}
            if one["sae"]["label"] == label else one for one in of]  # fmt: skip


def test_what_failed_is_named_where_the_sentence_does_not_speak_of_it():
    gone = "relu has no delta_lm_loss in every seed: see what failed."
    (verdict,) = said(failed(records(("topk", "relu")), "relu"))
    assert verdict.sentence == "Only topk was measured: there is nothing to compare."
    assert verdict.caveat == gone, "two names were given"
    (verdict,) = said(failed(records(("gated", "topk", "relu")), "relu"))
    assert "relu" not in verdict.sentence
    assert verdict.caveat == gone


def test_one_seed_is_a_caveat():
    (verdict,) = said(records(seeds=(0,)))
    assert verdict.caveat == "With one seed nobody knows how much another would change: give --seed several."


def test_several_settings_are_counted_and_not_averaged():
    found = said(records(sites=("layer_9.resid_post", "layer_3.mlp_out")))
    assert len(found) == 2
    assert over_settings(found) == "Of 2 settings, each by itself, first is jumprelu in 2."
