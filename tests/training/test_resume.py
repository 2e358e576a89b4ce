"""Stopped anywhere, the same command goes on and ends with the same bits."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from command import bench, flags
from test_end_to_end import ARCHS, records_of, weights_of, without_times
from warm import Command

from sae_bench.cli.main import main
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.runs.train import TrainStage
from sae_bench.training import trainer as trainer_module
from sae_bench.training.checkpoint import Checkpoints, checkpointed, flatten, unflatten


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    """Small halves, so that a run has many cycles, and an odd number of uses."""
    return {
        "--arch": ARCHS, "--l0": 6, "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 48,
        "--tokens": 1500, "--reuse": 3, "--batch-size": 130, "--buffer-tokens": 600, "--eval-tokens": 300,
        "--context-size": 32, "--seed": (0, 1), "--checkpoint-every": 7,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings, at_work) -> Path:
    """The run that nothing interrupted."""
    assert bench(*flags(settings | {"--out": at_work / "whole"}), "--quiet") == 0
    return at_work / "whole"


def same(run: Path, other: Path) -> None:
    """The same weights, logs and records, but for times."""
    assert weights_of(run) == weights_of(other)
    logs = [{path.parent.name: path.read_text() for path in of.glob("saes/*/metrics.jsonl")} for of in (run, other)]
    assert logs[0] == logs[1]
    records = [{name: without_times(record) for name, record in records_of(of).items()} for of in (run, other)]
    assert records[0] == records[1]


class Killed(BaseException):
    """What kill -9 leaves: nothing is written any more."""


@pytest.mark.parametrize("at", [1, 7, 8, 17, 20, 33])
def test_a_run_that_was_killed_after_any_step_ends_with_the_same_bits(settings, whole, tmp_path, monkeypatch, at):
    command = [*flags(settings | {"--out": tmp_path / "run"}), "--quiet"]
    step, done = trainer_module.SAETrainer.step, []

    def killed(self, *arguments, **how):
        done.append(self.id)
        if len(done) > at * 8:
            raise Killed
        step(self, *arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.SAETrainer, "step", killed)
        with pytest.raises(Killed):
            main([str(part) for part in command])
    assert not weights_of(tmp_path / "run")
    first = len(done)
    monkeypatch.setattr(
        trainer_module.SAETrainer, "step", lambda self, *a, **how: (done.append(self.id), step(self, *a, **how))
    )
    assert bench(*command) == 0
    n_steps = 1500 * 3 // 130
    assert len(done) - first == 8 * (n_steps - at // 7 * 7), "it goes on from the last checkpoint, not from the start"
    same(tmp_path / "run", whole)


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(settings, whole, tmp_path, monkeypatch, caplog):
    command = [*flags(settings | {"--out": tmp_path / "run"}), "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainStage, "run", stop_after(16, TrainStage.run, patch))
        assert bench(*command) == 130
    found = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in found] == ["00000014", "00000016"], "the last two are kept"
    file = next(found[-1].glob("gated*"))
    file.write_bytes(file.read_bytes()[:-40])
    assert bench(*command) == 0
    assert any("00000016 cannot be used" in record.getMessage() for record in caplog.records)
    same(tmp_path / "run", whole)


def stop_after(n_steps, run, patch):
    """As TrainStage.run, but SIGTERM arrives within a step."""

    def stopped(self, sink):
        step, done = trainer_module.SAETrainer.step, []

        def ask(trainer, *arguments, **how):
            done.append(trainer.id)
            if len(done) == (n_steps - 1) * len(self.trainers) + 2:  # in the middle of a step of all SAEs
                os.kill(os.getpid(), signal.SIGTERM)
            step(trainer, *arguments, **how)

        patch.setattr(trainer_module.SAETrainer, "step", ask)
        run(self, sink)

    return stopped


def test_sigterm_finishes_the_step_and_says_how_to_go_on(settings, whole, tmp_path, monkeypatch, capsys):
    command = [*flags(settings | {"--out": tmp_path / "run"}), "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainStage, "run", stop_after(5, TrainStage.run, patch))
        assert bench(*command) == 130
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("interrupted")]
    assert f"--out {tmp_path / 'run'}" in line
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000005"]
    assert bench(*command) == 0
    same(tmp_path / "run", whole)


def test_a_process_killed_while_it_works_goes_on(settings, whole, tmp_path):
    """The real thing: kill -9 at a moment of its own, three times."""
    command = [str(part) for part in flags(settings | {"--out": tmp_path / "run", "--checkpoint-every": 2})]
    for n_checkpoints in (1, 2, 4):
        process = Command([*command, "--quiet"])
        done = {path.parent.name for path in (tmp_path / "run").glob("checkpoints/*/checkpoint.json")}
        seen: set[str] = set(done)
        while len(seen) < len(done) + n_checkpoints and process.exitcode is None:
            seen |= {path.parent.name for path in (tmp_path / "run").glob("checkpoints/*/checkpoint.json")}
            time.sleep(0.01)
        process.kill()
        assert process.end()[0] == -signal.SIGKILL
    assert bench(*command, "--quiet") == 0
    same(tmp_path / "run", whole)


def test_a_changed_corpus_is_noticed(settings, tmp_path, monkeypatch, capsys):
    corpus = tmp_path / "corpus.jsonl"
    lines = Path(settings["--dataset"]).read_text().splitlines()
    corpus.write_text("\n".join(lines))
    command = [*flags(settings | {"--out": tmp_path / "run", "--dataset": corpus}), "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainStage, "run", stop_after(5, TrainStage.run, patch))
        assert bench(*command) == 130
    corpus.write_text("\n".join(line.replace("the", "teh") for line in lines))
    assert bench(*command) == 2
    assert "does not give the tokens that it gave before" in capsys.readouterr().err


def test_training_further_goes_on_where_the_training_ended(settings, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    assert bench(*flags(settings | {"--out": out}), "--quiet") == 0
    before = records_of(out)
    (known,) = {read_sealed(path)["config_hash"] for path in out.glob("saes/*/sae_bench.json")}
    steps = []
    step = trainer_module.SAETrainer.step
    monkeypatch.setattr(
        trainer_module.SAETrainer, "step", lambda self, x, n, **how: (steps.append(n), step(self, x, n, **how))
    )
    longer = [*flags(settings | {"--out": out, "--tokens": 2500}), "--quiet"]
    assert bench(*longer) == 2
    assert "--extend-tokens" in capsys.readouterr().err
    assert bench(*longer, "--extend-tokens") == 0
    first, more = 1500 * 3 // 130, 1000 * 3 // 130
    assert sorted(set(steps)) == list(range(first, first + more))
    after = records_of(out)
    assert set(after) == set(before)
    logs = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in out.glob("saes/relu*/metrics.jsonl")
    ]
    for log in logs:
        at_end = next(row for row in log if row["step"] == first - 1)["coefficient"]
        later = [row["coefficient"] for row in log if row["step"] >= first]
        assert all(0.2 * at_end < coefficient < 5 * at_end for coefficient in later), "the coefficient goes on"
    for name, record in after.items():
        training = record["sae"]["training"]
        assert training["n_steps"] == first + more
        assert training["activations_captured"] == 2500
        assert training["legs"] == [{"tokens": 1500, "config_hash": known}]
        assert record["sae"]["weights_sha256"] != before[name]["sae"]["weights_sha256"]
    steps.clear()
    assert bench(*longer) == 0
    assert steps == []


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    state = {"a": torch.arange(3), "b": {"c": 1, "d": {"e": torch.ones(2, 2), "f": None, "g": [1, "x"]}}, "empty": {}}
    tensors, rest = flatten(state)
    assert set(tensors) == {"a", "b|d|e"}
    assert json.loads(json.dumps(rest)) == {"b": {"c": 1, "d": {"f": None, "g": [1, "x"]}}, "empty": {}}
    checkpoints = Checkpoints(tmp_path, ["hash"])
    checkpoints.save(3, {"part": state}, {"fact": 1})
    found = checkpoints.load(["part"])
    assert found is not None
    assert (found.step, found.facts) == (3, {"fact": 1})
    assert flatten(found.parts["part"])[1] == rest
    assert all(torch.equal(flatten(found.parts["part"])[0][name], tensor) for name, tensor in tensors.items())
    assert Checkpoints(tmp_path, ["other"]).load(["part"]) is None
    assert unflatten(*flatten({})) == {}


def test_a_checkpoint_of_another_version_is_passed_over(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, ["hash"])
    checkpoints.save(3, {"part": {"a": 1}}, {})
    manifest = tmp_path / "00000003" / "checkpoint.json"
    content = read_sealed(manifest)
    del content["format"]
    write_sealed(manifest, content)
    assert checkpoints.load(["part"]) is None
    assert "made by another version" in caplog.text


@pytest.mark.parametrize("part", ["state", "sha256"])
def test_a_sealed_checkpoint_that_says_other_things_than_ours_is_passed_over(tmp_path, caplog, part):
    checkpoints = Checkpoints(tmp_path, ["hash"])
    for step in (3, 4):
        checkpoints.save(step, {"part": {"a": torch.ones(2)}}, {})
    manifest = tmp_path / "00000004" / "checkpoint.json"
    write_sealed(manifest, read_sealed(manifest) | {part: {"part": "text"} if part == "state" else 3})
    found = checkpoints.load(["part"])
    assert found is not None
    assert found.step == 3
    assert checkpointed(tmp_path) == {"part"}
