"""Controls on a board: apart, left out of comparisons, and every value's margin over the best of them."""

import csv
import io

import numpy as np
import pytest
from synthetic import TASKS, record, records, typed, write_run

from sae_bench.errors import UserError
from sae_bench.leaderboard import board_table, compare_table, order, tables
from sae_bench.leaderboard.board import Board
from sae_bench.leaderboard.compare import compare, comparisons
from sae_bench.leaderboard.figures.against_l0 import quality
from sae_bench.leaderboard.figures.style import styled
from sae_bench.leaderboard.margins import Margins
from sae_bench.leaderboard.palette import KEPT, KEPT_CONTROLS, looks
from sae_bench.leaderboard.render import CONTROLS
from sae_bench.leaderboard.setting import Setting

SETTING = Setting("demo", "layer_9.resid_post", 512)
VARIANTS = ["jumprelu:penalty=tanh", "jumprelu:penalty=quadratic", "gated:penalty=ri_l1", "mine", "yours"]


def control(label, *, seeds=(0, 1), targets=(16.0, 32.0), worse=1.0):
    """A control's records: as the synthetic architecture of that name, with that much more loss, and FVU doubled."""
    found = [record(label, target, seed, task) for target in targets for seed in seeds for task in TASKS]
    for one in found:
        one["sae"]["control"] = True
        if one["task"] == "delta_lm_loss":
            tokens, added = (np.array(one["by_document"][name]) for name in ("predictions", "added"))
            one["by_document"]["added"] = (added + worse * tokens).tolist()
            one["scores"]["delta_lm_loss"]["value"] += worse
        if one["task"] == "reconstruction":
            one["by_document"]["squared_error"] = [2 * error for error in one["by_document"]["squared_error"]]
            for name, up in (("fve", -1), ("fvu", 1)):
                one["scores"][name]["value"] += up * one["scores"]["fvu"]["value"] / (2 if name == "fvu" else 1)
            one["scores"]["fvu"]["value"] = 1 - one["scores"]["fve"]["value"]
    return found


@pytest.fixture(scope="module")
def board():
    """Two architectures; pca is the best control in added loss, random far behind."""
    of = records(("topk", "relu"), (16.0, 32.0))
    return typed([*of, *control("pca", worse=0.5), *control("random", worse=3.0)])


def value(of, label, target, seed, metric):
    (found,) = (r.scores[metric].value for r in of if metric in r.scores and
                (r.sae.label, r.sae.target, r.sae.seed) == (label, target, seed))  # fmt: skip
    return found


def by_document(of, label, target, seed):
    """Added loss per token of each document, and its tokens."""
    (found,) = (r for r in of if r.task == "delta_lm_loss" and
                (r.sae.label, r.sae.target, r.sae.seed) == (label, target, seed))  # fmt: skip
    return np.array(found.by_document["added"]), np.array(found.by_document["predictions"])


def test_a_margin_is_positive_where_the_value_is_better_whatever_its_direction(board):
    for metric, sign in (("delta_lm_loss", -1), ("fve", 1)):
        for seed in (0, 1):
            margin = Margins.of(board, metric).get(SETTING, "topk", 16.0, seed)
            best = max(("pca", "random"), key=lambda label: sign * value(board, label, 16.0, seed, metric))
            assert margin.over == best
            ours, theirs = (value(board, label, 16.0, seed, metric) for label in ("topk", best))
            assert margin.estimate.value == pytest.approx(sign * (ours - theirs))
            assert margin.estimate.value > 0


def test_margins_of_many_metrics_at_once_are_those_of_each(board):
    found = Margins.of_each(board, ["delta_lm_loss", "fve", "l0"])
    for metric in found:
        alone, at = Margins.of(board, metric), (SETTING, "topk", 16.0, 1)
        assert found[metric].get(*at) == alone.get(*at)
    assert found["fve"].get(*at) is not None


def test_its_error_is_that_of_the_difference_by_document(board):
    """The jackknife over documents of a difference of two ratios with the same documents."""
    margin = Margins.of(board, "delta_lm_loss").get(SETTING, "topk", 32.0, 1).estimate
    (ours, tokens), (theirs, _) = (by_document(board, label, 32.0, 1) for label in ("topk", "pca"))
    gap = theirs - ours
    left_out = (gap.sum() - gap) / (tokens.sum() - tokens)
    n = len(gap)
    expected = np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum())
    assert margin.stderr == pytest.approx(expected, rel=1e-6)
    alone = Margins.of(board, "delta_lm_loss").get(SETTING, "topk", 32.0, 1)
    assert alone.estimate.stderr < 0.7 * np.sqrt(2) * 0.2 / np.sqrt(n) + 0.02, "paired, so what is hard cancels"


def test_the_mean_over_seeds_has_a_margin_with_the_seeds_in_its_error(board):
    mean = Margins.of(board, "delta_lm_loss", over_seeds=True).get(SETTING, "topk", 16.0, None).estimate
    each = [Margins.of(board, "delta_lm_loss").get(SETTING, "topk", 16.0, seed).estimate for seed in (0, 1)]
    assert mean.value == pytest.approx(np.mean([one.value for one in each]))
    assert mean.over_seeds
    assert not each[0].over_seeds


def test_the_best_control_says_so_and_no_other_row_of_them_has_a_margin(board):
    found = Margins.of(board, "delta_lm_loss")
    cells = {
        label: found.cell(SETTING, label, 16.0, 0, lambda e: "value") for label in ("topk", "relu", "pca", "random")
    }
    assert cells == {"topk": "value", "relu": "value", "pca": "best", "random": "-"}


def test_a_control_that_is_an_architecture_in_a_metric_is_no_control_of_it(board):
    """As permuted, which has topk's encoder: the same fve by document, and worse added loss than topk's."""
    same = [record("topk", target, seed, task) for target in (16.0, 32.0) for seed in (0, 1) for task in TASKS]
    worse = control("topk", worse=0.1)
    twin = [{**one, "sae": {**one["sae"], "id": f"twin-{i}", "label": "twin", "arch": "twin", "control": True}}
            for i, one in enumerate(r for r in same if r["task"] == "reconstruction")]  # fmt: skip
    twin += [{**one, "sae": {**one["sae"], "id": f"twin-{i}", "label": "twin", "arch": "twin"}}
             for i, one in enumerate(r for r in worse if r["task"] == "delta_lm_loss")]  # fmt: skip
    of = [*board, *typed(twin)]
    for over_seeds, seed in ((False, 0), (True, None)):
        found = Margins.of(of, "fve", over_seeds=over_seeds)
        alone = Margins.of(board, "fve", over_seeds=over_seeds)
        assert found.get(SETTING, "relu", 16.0, seed).over == alone.get(SETTING, "relu", 16.0, seed).over != "twin"
        assert found.cell(SETTING, "twin", 16.0, seed, str) == "-"
        assert found.get(SETTING, "topk", 16.0, seed).estimate.value > 0
    assert Margins.of(of, "delta_lm_loss").get(SETTING, "topk", 16.0, 0).over == "twin", "where it lacks something"


def test_alike_by_chance_is_a_control_still(board):
    """All of nothing is absorbed by any: a 0 in every document says nothing of what was looked at."""
    none = [one.model_copy(update={"by_document": one.by_document | {"squared_error": [0.0] * 30}})
            if one.task == "reconstruction" else one for one in board]  # fmt: skip
    assert Margins.of(none, "fvu").get(SETTING, "topk", 16.0, 0).over in ("pca", "random")


def test_without_controls_or_a_direction_there_is_no_margin(board):
    assert Margins.of(board, "l0").get(SETTING, "topk", 16.0, 0) is None
    own = [one for one in board if not one.sae.control]
    assert Margins.of(own, "fve").get(SETTING, "topk", 16.0, 0) is None
    assert not [name for name in tables.headline(own) if name.startswith("margin:")]


def test_a_column_of_margins_that_cannot_be_is_refused(board):
    with pytest.raises(UserError, match="margin:l0: no value of it is better"):
        board_table.table(board, "text", ["margin:l0"])


def test_a_control_of_other_seeds_takes_no_seed_from_the_architectures(board):
    own = [one for one in board if not one.sae.control]
    mixed = [*own, *typed(control("pca", seeds=(1,)))]
    (found,) = comparisons(mixed, ["fve"], controls=True)
    assert found.seeds == (0, 1)
    assert [one.label for one in found.architectures] == ["relu", "topk"]
    of = Margins.of(mixed, "fve")
    assert of.get(SETTING, "topk", 16.0, 0) is None
    assert of.get(SETTING, "topk", 16.0, 1) is not None


def test_comparisons_and_claims_leave_controls_out_unless_asked(board):
    (without,), (with_them,) = (comparisons(board, ["fve"], controls=controls) for controls in (False, True))
    assert [one.label for one in without.architectures] == ["relu", "topk"]
    assert [one.label for one in with_them.architectures] == ["relu", "topk", "pca", "random"]
    assert {one.sae.label for one in without.records} == {"relu", "topk"}


def test_controls_stand_below_in_every_form(board):
    for text in (board_table.terminal(board), tables.markdown(board), tables.latex(board)):
        places = [text.index(name) for name in ("topk", "relu", CONTROLS, "pca", "random")]
        assert max(places[:2]) < places[2] < min(places[3:])
    rows = list(csv.DictReader(io.StringIO(tables.csv(board))))
    assert {row["architecture"] for row in rows if row["control"] == "True"} == {"pca", "random"}
    margin = Margins.of(board, "fve").get(SETTING, "topk", 16.0, 0)
    (row,) = (
        r for r in rows if (r["architecture"], r["target"], r["seed"], r["metric"]) == ("topk", "16.0", "0", "fve")
    )
    assert float(row["margin"]) == pytest.approx(margin.estimate.value)
    assert row["margin_over"] == margin.over


def test_no_control_is_on_the_front_however_good(board):
    better = typed(control("pca", worse=-5.0))
    front = order.front([*[one for one in board if one.sae.label != "pca"], *better])
    assert front
    assert not any(sae.startswith("pca") for _, sae in front)
    (found,) = comparisons([*board[: len(board)]], ["fve"], controls=True)
    assert set(compare_table.on_front(found, "fve")) == {"relu", "topk"}


def test_top_keeps_the_best_at_every_target_and_the_best_control(board):
    """relu is .33 nats behind topk, random 2.5 behind pca."""
    kept = order.top(board, 1)
    assert kept == {(SETTING, target, label) for target in (16.0, 32.0) for label in ("topk", "pca")}
    text = board_table.table(board, "text", ["delta_lm_loss"], over_seeds=True, top=1)
    assert "relu" not in text
    assert "random" not in text
    assert text.index("topk") < text.index("pca")


def test_top_keeps_the_best_of_those_that_others_trained(board):
    """Theirs has no target and no seed; it stands beside rows that have both."""
    theirs = record("gated", 16.0, 0, "delta_lm_loss")
    theirs["sae"] |= {"id": "theirs", "origin": {"source": "theirs", "format": "saelens"},
                      "target_l0": None, "coefficient": None, "seed": None}  # fmt: skip
    text = board_table.table([*board, *typed([theirs])], "text", ["delta_lm_loss"], top=1)
    assert "gated" in text
    assert "relu" not in text


def test_margins_beside_top_are_over_the_best_of_all_controls(board):
    """What is not shown is still compared with: the best control of another metric."""
    columns = ["margin:fve"]
    whole = board_table.table(board, "csv", columns)
    some = board_table.table(board, "csv", columns, top=1)
    assert set(some.splitlines()) <= set(whole.splitlines())


def test_compare_with_controls_has_a_table_of_margins_that_names_the_best(board):
    compared = comparisons(board, ["delta_lm_loss"], controls=True)
    text = compare_table.written("text", compared, ["delta_lm_loss"], (20.0,))
    assert text.index("topk") < text.index(CONTROLS) < text.index("random")
    margins = text[text.index("margin over the best control") :]
    assert "best control:" in margins
    assert "pca" in margins.partition("best control:")[2].partition("\n")[0]
    without = compare_table.written("text", comparisons(board, ["delta_lm_loss"]), ["delta_lm_loss"], (20.0,))
    assert "control" not in without


def test_controls_that_do_not_vary_make_no_architectures_difference_surer(board):
    """Three more controls, alike with every seed: a larger family, and the standard error of topk - relu as before."""
    still = [{**one, "sae": {**one["sae"], "seed": seed, "id": f"{one['sae']['id']}-{seed}"}}
             for name in ("a", "b", "c") for one in control(name, seeds=(0,)) for seed in (0, 1)]  # fmt: skip
    found = {}
    for controls in (False, True):
        (of,) = comparisons([*board, *typed(still)], ["fve"], controls=controls)
        differences = compare(of, "fve", (20.0,)).differences
        found[controls] = next(d for d in differences if {d.label, d.other} == {"topk", "relu"} and d.l0 == 20.0)
    assert found[True].estimate.stderr == pytest.approx(found[False].estimate.stderr)
    assert found[True].estimate.sources == found[False].estimate.sources


def test_looks_are_unlike_for_ten_architectures_their_variants_plugins_and_controls():
    labels = [*KEPT, *VARIANTS, *KEPT_CONTROLS, "my_control"]
    controls = {*KEPT_CONTROLS, "my_control"}
    found = looks(labels, controls)
    assert len(set(found.values())) == len(labels)
    assert len({(look.marker, look.dashes) for look in found.values()}) == len(labels), "in grey too"
    assert [label for label in found if label in controls] == list(found)[-len(controls) :]
    assert all(
        len({look.colour[i : i + 2] for i in (1, 3, 5)}) == 1 for name, look in found.items() if name in controls
    )
    assert all(found[name].colour == KEPT["jumprelu"].colour for name in VARIANTS[:2])


def test_an_architecture_looks_alike_on_every_board():
    for name, look in KEPT.items():
        assert looks([name, "aaa", "zzz"])[name] == look
        assert looks([*KEPT, *VARIANTS])[name] == look


def test_a_control_off_the_scale_is_named_and_does_not_press_the_curves_together(board, tmp_path):
    (found,) = comparisons(board, ["delta_lm_loss", "fve"], controls=True)
    labels = [one.label for one in found.architectures]
    with styled():
        figure = quality(found, looks(labels, ["pca", "random"]))
    axes = figure.axes[0]
    own = [value for label in ("relu", "topk") for value in found.points("delta_lm_loss")[label].value[0]]
    low, high = axes.get_ylim()
    assert high - low < 4 * (max(own) - min(own)) + 0.5
    assert axes.get_title(loc="left") == "off the scale: random"


def test_a_board_knows_its_controls(tmp_path):
    run = write_run(tmp_path / "run", [*records(("topk",), (16.0,)), *control("pca", targets=(16.0,))])
    board = Board.read([run])
    assert board.controls == {"pca"}
    assert list(board.looks) == ["topk", "pca"]
