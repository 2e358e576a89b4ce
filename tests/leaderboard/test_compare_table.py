"""Tables of comparisons: what is marked, what is said below them, and the command that prints them."""

import csv
import io

import numpy as np
import pytest
from scipy import stats
from simulated import N_DOCUMENTS, record, simulated
from synthetic import at, typed

from sae_bench.errors import UserError
from sae_bench.leaderboard import compare_table
from sae_bench.leaderboard.bootstrap import (
    MIN_DOCUMENTS,
    Design,
    difference,
    document_variance,
    estimate,
)
from sae_bench.leaderboard.compare import check_metrics, comparisons
from sae_bench.leaderboard.notes import note
from sae_bench.leaderboard.replicates import metric_replicates


def test_enough_documents_are_counted_in_the_note():
    records = simulated(0, {"a": 0.0, "b": 5.0}, n_seeds=2)
    for one in records:
        one["by_document"] = {name: of[:MIN_DOCUMENTS] for name, of in one["by_document"].items()}
    found = comparisons(typed(records), ["loss"])
    assert not at(found[0], "loss", (20.0,))[1][0].tie
    told = note(found)
    assert f"2 seeds; {MIN_DOCUMENTS} documents. The choice of training data is not in it." in told
    assert "--eval-tokens" not in told


def test_a_value_between_l0s_that_lie_far_apart_is_said_to_be_off_a_curve():
    """16, 32 and 64 are near enough; without 32, 20 and 50 lie across a factor of four, and 16 on no gap."""
    records = typed(simulated(0, {"a": 0.0, "b": 5.0}, n_seeds=2))
    assert "times apart" not in note(comparisons(records, ["loss"]), (20.0, 50.0, 100.0))
    few = comparisons([record for record in records if record.sae.target_l0 != 32], ["loss"])
    l0s = few[0].architectures[0].metrics["l0"].l0[0]
    gap = f"{max(l0s) / min(l0s):.1f} times"
    assert f" L0 20 and 50: read off curves between SAEs whose L0s are up to {gap}" in note(few, (20.0, 50.0, 100.0))
    assert "times apart" not in note(few, (float(l0s[0]), 100.0))
    assert "times apart" not in note(few)
    for form in ("text", "md", "tex"):
        assert f"{gap} apart" in " ".join(compare_table.written(form, few, ["loss"], (20.0,)).split()), form


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
