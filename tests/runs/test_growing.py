"""A run's folder that is asked for more: only what is missing is done, and the end is that of one command."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from command import bench, flags, write_labelled
from test_end_to_end import mtimes, records_of, weights_of, without_times
from test_identity import killed_at

from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.runs.config import RunConfig
from sae_bench.runs.deciding import ASKED, EVALUATION, KEPT, WAY
from sae_bench.saes.save import write_training
from sae_bench.training import trainer as trainer_module

TASKS = ("delta_lm_loss", "stability", "feature_density")


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    return {
        "--arch": "topk", "--l0": 6, "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 48,
        "--tokens": 1200, "--reuse": 2, "--batch-size": 130, "--buffer-tokens": 600, "--eval-tokens": 300,
        "--context-size": 32, "--tasks": "delta_lm_loss",
    }  # fmt: skip


@pytest.fixture(scope="module")
def first(settings, at_work) -> Path:
    """One SAE, evaluated by one task."""
    assert bench(*flags(settings | {"--out": at_work / "first"}), "--quiet") == 0
    return at_work / "first"


@pytest.fixture
def trained(monkeypatch):
    """The SAEs that were trained, each once."""
    step, seen = trainer_module.SAETrainer.step, {}
    monkeypatch.setattr(
        trainer_module.SAETrainer, "step", lambda self, *a, **how: (seen.setdefault(self.id), step(self, *a, **how))
    )
    return seen


def test_every_setting_decides_one_thing():
    """A new one counts as one that SAEs are trained by until it is put where it belongs."""
    named = [*ASKED, *EVALUATION, *KEPT, *WAY]
    assert len(named) == len(set(named))
    assert set(named) < RunConfig.model_fields.keys()
    assert {*RunConfig.model_fields} - {*named} == {
        *("model", "revision", "trust_remote_code", "random_lm", "world", "dtype", "device"),
        *("dataset", "text_column", "split", "tokens", "reuse", "context_size", "batch_size", "buffer_tokens"),
        *("preset", "recipe", "part", "kernels", "screening", "compile"),
    }


def test_a_run_that_grew_is_the_one_that_was_asked_for_at_once(settings, tmp_path, trained):
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    assert bench(*flags(settings | {"--limit": 4, "--out": grown}), "--quiet") == 0
    weights = weights_of(grown)
    base, both = settings, settings | {"--arch": ("topk", "relu")}
    steps = [
        (0, base),  # what --limit left out
        (1, base | {"--arch": "relu"}),
        (2, both | {"--layer": 0}),
        (4, both | {"--layer": (0, 1), "--seed": 1}),
        (0, base | {"--eval-tokens": 500, "--tasks": TASKS}),
    ]
    for n_new, step in steps:
        before = len(trained)
        assert bench(*flags(step | {"--out": grown}), "--quiet") == 0
        assert len(trained) - before == n_new, step
    assert {name: weights_of(grown)[name] for name in weights} == weights
    everything = {"--seed": (0, 1), "--layer": (0, 1), "--eval-tokens": 500, "--tasks": TASKS}
    assert bench(*flags(both | everything | {"--out": whole}), "--quiet") == 0
    same(grown, whole)
    done = mtimes(grown)
    assert bench(*flags(base | {"--eval-tokens": 500, "--out": grown}), "--quiet") == 0
    assert mtimes(grown) == done, "nothing is missing"


def same(run: Path, other: Path) -> None:
    """The same weights, records and board, but for times."""
    assert weights_of(run) == weights_of(other)
    found, expected = ({name: without_times(record) for name, record in records_of(of).items()} for of in (run, other))
    assert found == expected
    assert (run / "leaderboard.csv").read_text() == (other / "leaderboard.csv").read_text()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"--tokens": 1300}, "--tokens 1200, not 1300"),
        ({"--batch-size": 100, "--random-lm": None}, "no --random-lm, not --random-lm; --batch-size 130, not 100"),
        ({"--eval-tokens": 200}, "--eval-tokens 300, not 200"),
        ({"--eval-skip": 50}, "--eval-skip 0, not 50"),
        ({"--context-size": 16, "--dataset": "embedded"}, "--context-size 32, not 16"),
    ],
)
def test_what_would_change_numbers_is_refused_with_the_command_that_works(settings, first, capsys, other, words):
    asked = [part for part in flags(settings | other | {"--out": first}) if part is not None]
    before = mtimes(first)
    for more in ((), ("--dry-run",)):
        assert bench(*asked, *more) == 2
        error = capsys.readouterr().err
        assert words in error
        assert not re.search(r"None|True|False|\(\)|\['|->", error), "no word of Python's"
    command = shlex.split(re.search(r"(python bench\.py .*? --out \S+)", error)[1])
    assert bench(*command[2:], "--quiet") == 0
    assert mtimes(first) == before


def test_the_plan_of_more_counts_what_is_left_alone(settings, first, tmp_path, capsys):
    run = settings | {"--out": shutil.copytree(first, tmp_path / "run")}

    def plan(more) -> tuple[list[str], str]:
        assert bench(*flags(run | more), "--dry-run") == 0
        lines = capsys.readouterr().out.splitlines()
        states = [re.split(r"  +", line)[-1] for line in lines if line.startswith("topk.")]
        return sorted(states), next(line for line in lines if line.startswith("time "))

    states, time = plan({})
    assert (states, time.split()[1]) == (["finished"], "nothing")
    states, time = plan({"--tasks": ("delta_lm_loss", "feature_density")})
    assert states == ["to evaluate"]
    assert "evaluation" in time
    assert "training" not in time
    states, time = plan({"--l0": (6, 9)})
    assert states == ["finished", "to train"]
    assert "training" in time
    assert "evaluation" in time
    texts = {"--tasks": ("delta_lm_loss", "sparse_probing"), "--probe-set": write_labelled(tmp_path / "set.csv", 60)}
    states, time = plan(texts)
    assert states == ["to evaluate on texts"]
    assert time.endswith("on the held-out tokens; sparse_probing not counted")
    assert bench(*flags(run | texts), "--quiet") == 0
    assert plan(texts)[0] == ["finished"]
    next((tmp_path / "run" / "records").glob("*.delta_lm_loss.json")).unlink()
    assert plan({})[0] == ["to evaluate"]


def test_the_plan_of_more_says_what_is_left_besides_evaluation(settings, first, tmp_path, capsys):
    run = settings | {"--out": shutil.copytree(first, tmp_path / "run")}

    def states(more) -> list[str]:
        assert bench(*flags(run | more), "--dry-run") == 0
        lines = capsys.readouterr().out.splitlines()
        return [re.split(r"  +", line)[-1] for line in lines if line.startswith("topk.")]

    latents = {"--tasks": ("delta_lm_loss", "autointerp"), "--latents": 3, "--interp-tokens": 300}
    assert states(latents) == ["to collect latents"]
    assert bench(*flags(run | latents), "--quiet") == 0
    assert states(latents) == ["finished"]
    seeds = {"--tasks": ("delta_lm_loss", "stability"), "--seed": (0, 1)}
    assert states(seeds) == ["to compare with other seeds", "to train"]
    assert bench(*flags(run | seeds), "--quiet") == 0
    assert states(seeds) == ["finished"] * 2
    assert states(seeds | {"--seed": (0, 1, 2)}) == ["to compare with other seeds"] * 2 + ["to train"]


def test_the_plan_for_many_devices_counts_what_is_trained_already(settings, first, capsys):
    asked = settings | {"--out": first, "--l0": (6, 9), "--devices": "1xcpu"}
    assert bench(*flags(asked), "--dry-run") == 0
    assert "2 SAEs at 1 sites, 18 steps of 130 each (1 to train; 1 finished)\n" in capsys.readouterr().out
    assert bench(*flags(asked | {"--tasks": ("delta_lm_loss", "feature_density")}), "--dry-run") == 0
    assert "(1 to train; 1 to evaluate)\n" in capsys.readouterr().out
    assert bench(*flags(asked), "--dry-run", "--overwrite") == 0
    assert re.search(r"2 SAEs at 1 sites, .* of 130 each\n", capsys.readouterr().out)
    assert bench(*flags(asked | {"--l0": 6}), "--dry-run") == 0
    assert "(1 finished): nothing is left for cells\n" in capsys.readouterr().out
    seeds = asked | {"--l0": 6, "--seed": (0, 1), "--tasks": ("delta_lm_loss", "stability")}
    assert bench(*flags(seeds), "--dry-run") == 0
    said = capsys.readouterr().out
    assert "(1 to train; 1 to compare with other seeds)\n" in said
    assert "; comparisons among seeds not counted\n" in said


def test_a_killed_training_goes_on_beside_what_is_added(settings, tmp_path, monkeypatch):
    killed_at(many := 12, monkeypatch, flags(settings | {"--out": tmp_path / "run", "--checkpoint-every": 3}))
    step, done = trainer_module.SAETrainer.step, []
    monkeypatch.setattr(
        trainer_module.SAETrainer, "step", lambda self, *a, **how: (done.append(self.id), step(self, *a, **how))
    )
    both = settings | {"--arch": ("topk", "relu")}
    assert bench(*flags(both | {"--out": tmp_path / "run"}), "--quiet") == 0
    n_steps = 1200 * 2 // 130
    assert sum(name.startswith("topk") for name in done) == n_steps - many, "it goes on from its checkpoint"
    assert sum(name.startswith("relu") for name in done) == n_steps
    assert bench(*flags(both | {"--out": tmp_path / "whole"}), "--quiet") == 0
    same(tmp_path / "run", tmp_path / "whole")


def test_a_short_look_at_a_longer_run_takes_nothing_away(settings, first, capsys):
    before = mtimes(first)
    assert bench(*flags(settings | {"--limit": 2, "--out": first})) == 0
    assert "is evaluated on 300 tokens, and stays so" in capsys.readouterr().err
    assert mtimes(first) == before


def test_an_sae_that_was_trained_on_other_text_gets_no_board_beside_the_others(settings, first, tmp_path, capsys):
    run = shutil.copytree(first, tmp_path / "run")
    write_training(next((run / "saes").iterdir()), fingerprint="0" * 64)
    before = (run / "leaderboard.csv").stat().st_mtime_ns
    assert bench(*flags(settings | {"--arch": "relu", "--out": run})) == 2
    assert "gave relu.layer_1.resid_post.w48.l0_6.seed0 other tokens than topk." in capsys.readouterr().err
    assert (run / "leaderboard.csv").stat().st_mtime_ns == before


def test_an_sae_from_elsewhere_that_has_changed_is_not_taken_for_what_it_was(settings, first, tmp_path, capsys):
    theirs = shutil.copytree(next((first / "saes").iterdir()), tmp_path / "theirs")
    imported = {name: value for name, value in settings.items() if name not in ("--arch", "--l0")} | {"--sae": theirs}
    assert bench(*flags(imported | {"--out": tmp_path / "run"}), "--quiet") == 0
    write_training(theirs, remarks=["edited"])
    before = mtimes(tmp_path / "run")
    for command in (settings, imported):
        assert bench(*flags(command | {"--out": tmp_path / "run"})) == 2
        assert f"has --sae {theirs}, which has changed since" in capsys.readouterr().err
    assert mtimes(tmp_path / "run") == before


def test_a_run_of_an_earlier_version_is_left_as_it_is_with_a_word(settings, first, tmp_path, capsys):
    run = settings | {"--out": shutil.copytree(first, tmp_path / "run")}
    manifest = read_sealed(tmp_path / "run" / "run.json")
    for later in ("format", "asked", "kept", "model", "environment", "training_hash", "dataset_sha256"):
        del manifest[later]
    write_sealed(tmp_path / "run" / "run.json", manifest)
    before = mtimes(tmp_path / "run")
    assert bench(*flags(run)) == 2
    assert "was made by an earlier version" in capsys.readouterr().err
    assert mtimes(tmp_path / "run") == before
    assert bench("table", tmp_path / "run") == 0
    assert bench(*flags(run), "--overwrite", "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "to train" in plan
    assert f"the run in {tmp_path / 'run'} is deleted first" in plan
    assert mtimes(tmp_path / "run") == before


@pytest.mark.parametrize("problem", ["too little text", "another text"])
def test_a_growth_that_cannot_be_leaves_the_run_as_it_was(settings, first, tmp_path, capsys, problem):
    run = {"--out": shutil.copytree(first, tmp_path / "run")}
    if problem == "another text":
        write_training(next((tmp_path / "run" / "saes").iterdir()), fingerprint="0" * 64)
    more = {"--eval-tokens": 400 if problem == "another text" else 1_000_000}
    before = mtimes(tmp_path / "run")
    assert bench(*flags(settings | run | more)) == 2
    words = {"another text": "was trained on", "too little text": "evaluation tokens, fewer than"}[problem]
    assert words in capsys.readouterr().err
    assert mtimes(tmp_path / "run") == before
    assert bench(*flags(settings | run), "--quiet") == 0


def test_what_a_command_does_not_say_stays_as_the_run_has_it_with_a_word(settings, tmp_path, capsys):
    run = settings | {"--out": tmp_path / "run"}
    assert bench(*flags(run | {"--latents": 5, "--absorption-words": 20}), "--quiet") == 0
    before = mtimes(tmp_path / "run")
    capsys.readouterr()
    for more in ((), ("--dry-run",)):
        assert bench(*flags(run), *more) == 0
        said = f"the run in {tmp_path / 'run'} keeps what this command does not say: --latents 5 --absorption-words 20"
        assert capsys.readouterr().err.count(said) == 1
    assert bench(*flags(run | {"--latents": 5, "--absorption-words": 20})) == 0
    assert "keeps what" not in capsys.readouterr().err
    assert mtimes(tmp_path / "run") == before
