"""`--model synthetic`: a run as any other, with a task about the truth, and none about a language model."""

import csv
import json

import pytest
from command import bench, flags
from test_end_to_end import mtimes, records_of, weights_of, without_times

from sae_bench.runs.config import RunConfig
from sae_bench.training import trainer as trainer_module

WORLD = """
n_features = 48
d_in = 16
n_roots = 4
depth = 1
"""


@pytest.fixture(scope="module")
def settings(at_work):
    (at_work / "toy.toml").write_text(WORLD)
    return {
        "--model": f"synthetic:{at_work / 'toy.toml'}", "--arch": ("relu", "topk"), "--width": 24, "--l0": 3,
        "--tokens": 3000, "--reuse": 2, "--batch-size": 130, "--buffer-tokens": 1000, "--eval-tokens": 1000,
        "--context-size": 257, "--seed": (0, 1), "--checkpoint-every": 7,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(settings, at_work):
    assert bench(*flags(settings | {"--out": at_work / "world"}), "--quiet") == 0
    return at_work / "world"


def test_every_sae_has_a_record_of_every_task_and_what_does_not_apply_says_why(finished):
    records = records_of(finished)
    assert len(records) == 4 * 8
    for name, record in records.items():
        assert record["failure"] is None
        if record["task"] in ("delta_lm_loss", "autointerp"):
            assert record["not_measured"] == "does not apply", name
            assert f"{record['task']} does not apply: a synthetic world has no language model" in record["caption"]
            assert all(score["value"] is None and "no language model" in score["note"]
                       for score in record["scores"].values())  # fmt: skip
        else:
            assert any(score["value"] is not None for score in record["scores"].values()), name
    truth = records["topk.synthetic.w24.l0_3.seed0.ground_truth.json"]
    assert truth["provenance"]["config"]["world"]["n_features"] == 48
    assert 0.3 < truth["scores"]["mcc"]["value"] < 1
    assert 0 < truth["scores"]["f1"]["stderr"] < 0.1
    assert truth["scores"]["f1"]["value"] < truth["details"]["ceiling"]["f1_at_width"] <= 1


def test_saes_that_are_there_are_held_against_the_truth_as_the_runs_own_were(finished, settings, tmp_path, capsys):
    here = {name: settings[name] for name in ("--model", "--eval-tokens", "--context-size")}
    assert bench(*flags(here | {"--sae": finished, "--out": tmp_path / "again"}), "--quiet") == 0
    before, again = records_of(finished), records_of(tmp_path / "again")
    truth = [record for record in again.values() if record["task"] == "ground_truth"]
    assert len(truth) == 4
    for record in truth:
        name = record["sae"]["origin"]["source"].rpartition("/")[2]
        own = before[f"{name}.ground_truth.json"]
        assert record["scores"] == own["scores"]
        assert record["sae"]["origin"]["site_from"] == "synthetic:toy"
    assert bench("--sae", finished, "--model", "synthetic:small", "--out", tmp_path / "wide") == 2
    assert "is for activations 16 wide, synthetic of synthetic:small has 128" in capsys.readouterr().err


def test_the_board_is_about_samples_and_led_by_the_truth(finished):
    board = (finished / "leaderboard.md").read_text()
    head = board.splitlines()[2]
    assert head.index(" l0 ") < head.index(" f1 ") < head.index(" mcc ") < head.index(" dead_share ")
    assert "delta" not in head
    assert "Trained on 5,980 samples of synthetic:toy" in board.replace("\\", "")
    assert "held-out samples of 16 blocks" in board
    assert "held-out tokens" not in board
    assert "Pareto front of L0 and f1" in board
    rows = list(csv.DictReader((finished / "leaderboard.csv").read_text().splitlines()))
    assert {row["note"] for row in rows if row["metric"] == "kl"} == {
        "delta_lm_loss does not apply: a synthetic world has no language model to splice into, and no text"
    }


def test_the_same_command_makes_nothing_again(finished, settings, capsys):
    before = mtimes(finished)
    assert bench(*flags(settings | {"--out": finished}), "--quiet") == 0
    assert mtimes(finished) == before
    capsys.readouterr()
    assert bench(*flags(settings | {"--out": finished, "--latents": 3}), "--dry-run") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if ".synthetic.w24." in line]
    assert len(rows) == 4
    assert all(row.endswith("  finished") for row in rows), "latents are collected of a language model alone"


def test_its_numbers_can_be_verified(finished, capsys):
    assert bench("verify", finished) == 0
    assert " 0 not" in capsys.readouterr().out


@pytest.mark.parametrize("at", [3, 17, 30])
def test_a_run_that_was_killed_ends_with_the_same_bits(finished, settings, tmp_path, monkeypatch, at):
    command = [*flags(settings | {"--out": tmp_path / "run"}), "--quiet"]
    step, done = trainer_module.SAETrainer.step, []

    def killed(self, *arguments, **how):
        done.append(self.id)
        if len(done) > at * 4:
            raise SystemExit(9)  # nothing is written any more
        return step(self, *arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.SAETrainer, "step", killed)
        assert bench(*command) == 9
    assert bench(*command) == 0
    assert weights_of(tmp_path / "run") == weights_of(finished)
    records = [{name: without_times(record) for name, record in records_of(of).items()}
               for of in (tmp_path / "run", finished)]  # fmt: skip
    assert records[0] == records[1]


def test_a_dry_run_makes_no_world(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sae_bench.synthetic.world.feature_directions", None)
    assert bench(*flags(settings | {"--out": tmp_path / "run"}), "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "topk.synthetic.w24.l0_3.seed1" in plan
    assert "synthetic:toy" in plan
    assert not (tmp_path / "run").exists()


def test_what_decides_a_world_decides_the_runs_hash(settings, tmp_path):
    def hash_of(text):
        path = tmp_path / "toy.toml"
        path.write_text(text)
        return RunConfig.build({"model": f"synthetic:{path}", "archs": ["topk"]}).hash

    assert hash_of(WORLD) == hash_of("# the same\n" + WORLD)
    assert hash_of(WORLD) != hash_of(WORLD + "seed = 1")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"--layer": 3}, "--layer is for language models: leave it out with --model synthetic:toy"),
        ({"--site": "resid_post"}, "--site is for language models"),
        ({"--layer": "all"}, '"all" stands for layers and sites of language models'),
        ({"--dataset": "embedded"}, "--dataset is for language models"),
        ({"--context-size": 128}, "--context-size 128: a synthetic world gives 256 samples at once"),
        ({"--model": "synthetic:smal"}, 'unknown size "smal"'),
    ],
)
def test_what_a_world_does_not_have_is_refused(settings, wrong, message, capsys):
    assert bench(*flags(settings | wrong), "--dry-run") == 2
    assert message in capsys.readouterr().err


def test_on_a_language_model_the_task_is_left_out_and_if_asked_for_says_why(gemma2_folder, corpus, tmp_path):
    run = {
        "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 32, "--tokens": 600, "--reuse": 2,
        "--batch-size": 200, "--eval-tokens": 300, "--context-size": 32, "--arch": "topk", "--l0": 4,
    }  # fmt: skip
    default, asked = tmp_path / "default", tmp_path / "asked"
    assert bench(*flags(run | {"--out": default}), "--quiet") == 0
    assert "ground_truth" not in {record["task"] for record in records_of(default).values()}
    assert bench(*flags(run | {"--out": asked, "--tasks": ("ground_truth", "reconstruction")}), "--quiet") == 0
    record = json.loads(next(asked.glob("records/*.ground_truth.json")).read_text())
    assert record["failure"] is None
    assert record["caption"].startswith("ground_truth does not apply: features are known of a synthetic world alone")
    assert "f1" not in (asked / "leaderboard.md").read_text().splitlines()[2]
