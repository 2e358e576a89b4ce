"""A study's results are what its scripted raters did, and enter the runs as records that boards and claims read."""

import random

import numpy as np
import pytest
import synthetic
from command import bench
from made_study import TRUTH, answer, make, records_of

from sae_bench.cli.main import main
from sae_bench.errors import UserError
from sae_bench.leaderboard.bootstrap import Design
from sae_bench.leaderboard.claims import METRICS, check_claims
from sae_bench.leaderboard.compare import comparisons
from sae_bench.leaderboard.replicates import metric_replicates
from sae_bench.records import lineage
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import BY_RATERS, Metric, Record, Score
from sae_bench.study.human_records import with_judges
from sae_bench.study.ratings import read_ratings
from sae_bench.study.results import results_of
from sae_bench.study.results_text import written

LABELS = ("gated", "jumprelu", "topk")


@pytest.fixture
def study(tmp_path):
    """A study of three SAEs in two runs, which nobody has answered."""
    runs = {"gated": tmp_path / "a", "jumprelu": tmp_path / "a", "topk": tmp_path / "b"}
    for run in ("a", "b"):
        labels = [label for label in LABELS if runs[label].name == run]
        synthetic.write_run(tmp_path / run, synthetic.records(labels, (16.0,), (0,)))
    return make(tmp_path / "study", runs)


def by_chance(rater, label, latent):
    draw = random.Random(f"{rater} {label} {latent}")
    return draw.choice(["yes", "maybe", "no"]), [draw.random() < 0.5 for _ in TRUTH]


def shares(results):
    return {one["label"]: one["scores"]["human_yes"]["value"] for one in results["saes"]}


def test_raters_who_like_the_latents_of_one_hidden_sae_alone_are_detected(study):
    answer(study, lambda rater, label, latent: ("yes" if label == "topk" and latent != 2 else "no", TRUTH))
    results = results_of(read_ratings(study))
    assert shares(results) == {"gated": 0, "jumprelu": 0, "topk": pytest.approx(11 / 12)}
    told = {(one["of"], one["minus"]) for one in results["differences"] if one["p"] is not None and one["p"] < 0.05
            and one["metric"] == "human_yes"}  # fmt: skip
    assert told == {("gated", "topk"), ("jumprelu", "topk")}
    assert results["agreement"]["nominal"]["value"] == 1
    assert all(one["scores"]["human_detection"]["value"] == 1 for one in results["saes"])


def test_one_rater_who_likes_one_sae_alone_is_named_and_a_mild_one_is_not(study):
    def script(rater, label, latent):
        if rater == 1:
            return ("yes" if label == "topk" else "no"), None
        return ("yes", None) if rater == 2 else by_chance(0, label, latent)

    answer(study, script)
    results = results_of(read_ratings(study))
    assert {one["rater"] for one in results["leanings"]} == {1}
    assert "rater 1 finds topk better than the other raters" in written(results)


def test_without_the_one_who_answers_by_chance_the_others_agree(study):
    answer(study, lambda rater, label, latent: by_chance(rater if rater == 4 else 0, label, latent))
    alphas = [one["alpha_of_the_others"] for one in results_of(read_ratings(study))["raters"]]
    assert alphas[3] == 1
    assert max(alphas[:3]) < 0.8


def test_a_pilot_whose_raters_all_say_the_same_plans_nothing(study, capsys):
    for said in ("yes", "no"):
        answer(study, lambda *_, said=said: (said, None))
        assert bench("study", "power", study.path) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"all answers are {said}" in line
        assert "--share and --alpha" in line
    answer(study, lambda rater, label, latent: ("yes" if latent < 60 else "no", None))
    assert bench("study", "power", study.path) == 0, "raters agree, and latents differ"


def test_a_rater_who_says_yes_to_everything_shifts_all_saes_and_not_one(study):
    answer(study, by_chance)
    before = results_of(read_ratings(study))
    answer(study, lambda rater, label, latent: ("yes", None) if rater == 4 else by_chance(rater, label, latent))
    after = results_of(read_ratings(study))
    by = [after_ - before_ for before_, after_ in zip(shares(before).values(), shares(after).values(), strict=True)]
    assert min(by) > 0.05
    for one in (before, after):
        assert all(found["p"] > 0.05 for found in one["differences"]), "nothing is told apart where nothing differs"
        assert not one["leanings"]


def test_detection_is_balanced_accuracy_and_random_raters_have_half(study):
    answer(study, lambda *about: ("no", [True] * 10 if about[1] == "topk" else by_chance(*about)[1]))
    found = {one["label"]: one["scores"]["human_detection"] for one in results_of(read_ratings(study))["saes"]}
    assert found["topk"]["value"] == 0.5
    low, high = found["gated"]["interval"]
    assert low < 0.5 < high


def test_of_half_a_study_what_is_missing_is_counted_and_nothing_is_imputed(study):
    answer(study, lambda rater, label, latent: by_chance(rater, label, latent) if rater < 3 and latent < 60 else None)
    results = results_of(read_ratings(study))
    assert [one["answered"] > 0 for one in results["raters"]] == [True, True, False, False]
    text = written(results)
    assert text.startswith("PARTIAL: ")
    assert sum("nothing" in line for line in text.splitlines()) == 2
    assert [(one["n_rated"], one["n_latents"]) for one in results["saes"]] == [(6, 12)] * 3
    assert {one["scores"]["human_yes"]["n_raters"] for one in results["saes"]} == {2}


def test_of_a_study_that_nobody_has_answered_records_say_so(study, tmp_path, capsys):
    assert run_results(study.path) == 0
    said = capsys.readouterr().out
    assert said.startswith("PARTIAL: 0 of ")
    assert sum("nothing" in line for line in said.splitlines()) == 4, "one line for each rater"
    records = [one for one in RunFolder(tmp_path / "a").records() if one.task == "human"]
    assert [one.failure for one in records] == ["no rater answered"] * 2


def test_an_answer_to_what_was_never_asked_is_no_result(study):
    answer(study, by_chance)
    study.answers_path(1).write_text(study.answers_path(2).read_text())
    with pytest.raises(UserError, match="was never put before rater 1"):
        read_ratings(study)


def run_results(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["study", "results", *map(str, arguments)])
    return stop.value.code


def test_records_enter_the_runs_and_the_same_command_writes_the_same_bytes(study, tmp_path, capsys):
    answer(study, by_chance)
    assert run_results(study.path) == 0
    assert "3 records in" in capsys.readouterr().out
    files = [study.path / "results.json", *sorted(tmp_path.glob("[ab]/records/*.human.json"))]
    first = [path.read_bytes() for path in files]
    assert len(files) == 4
    assert run_results(study.path) == 0
    assert [path.read_bytes() for path in files] == first

    records = RunFolder(tmp_path / "a").records()
    human = [one for one in records if one.task == "human"]
    assert [one.sae.label for one in human] == ["gated", "jumprelu"]
    assert human[0].measured_on == BY_RATERS
    assert len([said for said in human[0].details["answers"] if not said["showing"]]) == 12 * 3, "three raters each"
    assert "human_yes" in (tmp_path / "a" / "leaderboard.md").read_text()
    both = records + RunFolder(tmp_path / "b").records()
    compared = comparisons(both, METRICS)
    said = {judged.claim: judged for _, judged in check_claims(compared, (16.0,))}
    (about_equal,) = (of for claim, of in said.items() if "equally interpretable to people" in claim)
    assert about_equal.verdict == "cannot tell"
    without = check_claims(comparisons([one for one in both if one.task != "human"], METRICS), (16.0,))
    assert not any("people" in judged.claim for _, judged in without)


def test_a_run_that_was_moved_is_found_where_it_is_and_other_weights_get_no_record(study, tmp_path, capsys):
    answer(study, by_chance)
    (tmp_path / "b").rename(tmp_path / "moved")
    assert run_results(study.path) == 1
    assert "name its run behind the study's folder" in capsys.readouterr().err
    assert run_results(study.path, tmp_path / "moved") == 0
    again = synthetic.records(["topk"], (16.0,), (0,))
    for one in again:
        one["sae"]["weights_sha256"] = "other"
    synthetic.write_run(tmp_path / "b", again)
    (next((tmp_path / "moved" / "records").glob("*.human.json"))).unlink()
    (tmp_path / "moved").rename(tmp_path / "gone")
    assert run_results(study.path) == 1
    assert "was trained again since" in capsys.readouterr().err
    assert not list((tmp_path / "b" / "records").glob("*.human.json"))


def human_record(answers, latents):
    (one,) = records_of(["topk"])
    made_from = lineage.rated_hashes("w", {of["latent"]: lineage.collected_hash(of) for of in latents}, answers)
    details = {"latents": [of["latent"] for of in latents], "answers": answers, "made_from": made_from}
    return one.model_copy(update={"task": "human", "measured_on": BY_RATERS, "details": details})


def test_a_record_knows_the_latents_and_the_answers_that_it_was_made_from():
    shown = [{"latent": 12, "max": 1.0}, {"latent": 3, "max": 2.0}]
    record = human_record([{"latent": 3, "rater": 1, "answer": "yes"}], shown)
    beside = [*shown, {"latent": 4, "max": 9.0}]
    assert lineage.rated_from_others(record, "w", beside) == []
    assert lineage.rated_from_others(record, "other", beside) == ["weights"]
    assert lineage.rated_from_others(record, "w", [shown[0], {"latent": 3, "max": 2.5}]) == ["latents"]
    record.details["answers"][0]["answer"] = "no"
    assert lineage.rated_from_others(record, "w", beside) == ["ratings"]


def test_an_error_of_few_degrees_counts_as_wide_as_its_own_interval():
    """Student's t at 97.5%: 2.776 for 4 degrees, 2.045 for the 29 that 30 documents leave."""
    (one,) = records_of(["topk"])
    scores = {"human_yes": Score(0.5, 0.1, 20)}
    record: Record = one.model_copy(update={"scores": scores, "details": {"degrees": {"human_yes": 4.0}}})
    moved = metric_replicates(record, "human_yes", Design(30, 1))
    assert np.ptp(moved) == pytest.approx(0.1 * 2.776 / 2.045, rel=1e-3)


def test_raters_are_held_against_the_judge_on_the_same_latents(study, tmp_path):
    """The judge's score falls with the raters' own: a perfect negative rank correlation within each SAE."""
    answer(study, lambda rater, label, latent: (("no", "maybe", "yes")[latent // 10 % 3], None))
    runs = {}
    for place, one in enumerate(study.study().saes):
        folder = RunFolder(tmp_path / ("b" if one.sae.label == "topk" else "a"))
        latents = [item.latent for item in study.study().items if item.sae == place]
        scores = [-(latent // 10 % 3) for latent in latents]
        details = {"judge": {"model": "m"}, "latents": latents, "values": {"detection": scores}}
        record = records_of([one.sae.label])[0].model_copy(update={"task": "autointerp", "details": details})
        record = record.model_copy(update={"metrics": {"detection": Metric("detection", "up", "", "")}, "scores": {}})
        synthetic.seal(folder.record_path(one.sae.id, "autointerp"), record.as_json())
        runs[place] = folder
    ratings = read_ratings(study)
    (found,) = with_judges(results_of(ratings), ratings, runs)["judge"]
    assert (found["scorer"], found["n_latents"], found["n_saes"]) == ("detection", 36, 3)
    assert found["spearman"] == pytest.approx(-1)
