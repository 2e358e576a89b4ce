"""What fails is on record, with its reason, and takes nothing else down; what is finished can be verified."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from command import bench, files, flags
from test_end_to_end import records_of

from sae_bench.evaluation import loop as evaluation
from sae_bench.evaluation.task import Result
from sae_bench.leaderboard import captions
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.records.schema import read_record
from sae_bench.registry import TASKS
from sae_bench.runs.records import make_record
from sae_bench.training import trainer as trainer_module


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    return {
        "--arch": ("topk", "relu"), "--l0": 6, "--model": gemma2_folder, "--layer": 1, "--dataset": corpus,
        "--width": 48, "--tokens": 1200, "--reuse": 2, "--batch-size": 120, "--eval-tokens": 300,
        "--context-size": 32,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings, at_work) -> Path:
    assert bench(*flags(settings | {"--out": at_work / "whole"}), "--quiet") == 0
    return at_work / "whole"


@pytest.fixture
def run(whole, settings, tmp_path):
    """A copy of the finished run, and its command."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run", [*flags(settings | {"--out": tmp_path / "run"}), "--quiet"]


PLUGIN = '''
"""Fails at its fifth step."""
from sae_bench import Loss, SparseAutoencoder, Step, reconstruction_loss, register_architecture

@register_architecture("brittle")
class Brittle(SparseAutoencoder):
    n = 0

    def encode(self, x):
        return self.select(x, keep=lambda z: z > 0)

    def loss(self, x, step):
        self.n += 1
        if self.n == 5:
            raise RuntimeError("the key is sk-abcdefghijklmnopqrstuvwx")
        f = self.encode(x)
        x_hat = self.decode(f)
        return Loss(reconstruction_loss(x, x_hat) + step.coefficient * f.sum_per_token(f.values), x_hat, f)
'''


def test_an_sae_that_raises_is_failed_with_its_step_and_spares_the_others(settings, whole, tmp_path, capsys):
    plugin = tmp_path / "brittle.py"
    plugin.write_text(PLUGIN)
    command = settings | {"--arch": ("topk", "brittle"), "--plugin": plugin, "--out": tmp_path / "run"}
    assert bench(*flags(command), "--quiet") == 1
    assert "FAILED brittle" in capsys.readouterr().out
    records = records_of(tmp_path / "run")
    reasons = {record["failure"] for record in records.values() if record["sae"]["arch"] == "brittle"}
    (reason,) = reasons
    assert reason.startswith("RuntimeError at step 4: the key is ")
    assert "sk-abcdef" not in "".join(path.read_text() for path in (tmp_path / "run").rglob("*.json"))
    good = {name: record["scores"] for name, record in records.items() if record["sae"]["arch"] == "topk"}
    assert good == {name: record["scores"] for name, record in records_of(whole).items() if name in good}
    plugin.write_text(PLUGIN.replace("== 5", "== 99"))
    assert bench(*flags(command), "--quiet") == 2
    assert "has changed since" in capsys.readouterr().err
    assert bench(*flags(command), "--quiet", "--overwrite") == 0


def test_a_task_that_raises_fails_alone_and_is_tried_again(run, monkeypatch):
    folder, command = run
    for path in (folder / "records").iterdir():
        path.unlink()
    density = TASKS["feature_density"]
    with monkeypatch.context() as patch:
        patch.setattr(density, "update", lambda self, batch: 1 / 0)
        assert bench(*command) == 1
    records = records_of(folder)
    failed = {name: record["failure"] for name, record in records.items() if record["failure"]}
    assert set(failed.values()) == {"ZeroDivisionError: division by zero"}
    assert {record["task"] for name, record in records.items() if name in failed} == {"feature_density"}
    assert bench(*command) == 0
    assert not [record for record in records_of(folder).values() if record["failure"]]


def test_scores_that_are_not_finite_are_a_failure(run, monkeypatch):
    folder, command = run
    shutil.rmtree(folder / "records")
    losses = evaluation.token_losses

    def spoilt(*arguments):
        found = losses(*arguments)
        found.kl[0, 0] = torch.nan
        return found

    monkeypatch.setattr(evaluation, "token_losses", spoilt)
    assert bench(*command) == 1
    failures = {record["failure"] for record in records_of(folder).values() if record["failure"]}
    assert failures == {"ValueError: kl is nan"}


def test_too_little_memory_halves_what_is_done_at_once(settings, whole, tmp_path, monkeypatch, caplog):
    part, reply, capture = trainer_module.SAETrainer._part, evaluation._reply, evaluation.LanguageModel.capture

    def small(limit, of, function):
        def limited(*arguments, **how):
            if len(of(arguments)) > limit:
                raise torch.OutOfMemoryError("no")
            return function(*arguments, **how)

        return limited

    monkeypatch.setattr(trainer_module.SAETrainer, "_part", small(50, lambda a: a[1], part))
    monkeypatch.setattr(evaluation, "_reply", small(100, lambda a: a[1], reply))
    monkeypatch.setattr(evaluation.LanguageModel, "capture", small(3, lambda a: a[1], capture))
    assert bench(*flags(settings | {"--out": tmp_path / "run"}), "--quiet") == 0
    told = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert any("60 tokens in a step of topk" in line and "going on with 30" in line for line in told)
    assert any("contexts in an evaluation batch" in line for line in told)
    records, before = records_of(tmp_path / "run"), records_of(whole)
    assert {record["sae"]["training"]["micro_batch"] for record in records.values()} == {30}
    assert {record["sae"]["training"]["micro_batch"] for record in before.values()} == {None}
    for name, record in records.items():
        for score, value in record["scores"].items():
            if score in ("fve", "l0", "ce_clean"):
                assert value["value"] == pytest.approx(before[name]["scores"][score]["value"], rel=0.02)


def test_memory_for_not_even_one_token_fails_the_sae(settings, tmp_path, monkeypatch):
    def none(self, *arguments):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(trainer_module.SAETrainer, "_part", none)
    assert bench(*flags(settings | {"--out": tmp_path / "run"}), "--quiet") == 1
    assert all("out of memory, even with one" in record["failure"] for record in records_of(tmp_path / "run").values())


def test_gradients_that_are_not_finite_are_found_at_their_step(settings, tmp_path, monkeypatch):
    backward = torch.Tensor.backward
    steps = []

    def spoil(self, *arguments, **how):
        backward(self, *arguments, **how)
        steps.append(None)
        if len(steps) == 7:
            for trainer in trainers:
                trainer.sae.b_enc.grad[3] = torch.nan

    trainers = []
    start = trainer_module.SAETrainer.initialise
    monkeypatch.setattr(
        trainer_module.SAETrainer, "initialise", lambda self, *data: (trainers.append(self), start(self, *data))[1]
    )
    monkeypatch.setattr(torch.Tensor, "backward", spoil)
    assert bench(*flags(settings | {"--arch": "topk", "--out": tmp_path / "run"}), "--quiet") == 1
    failures = {record["failure"] for record in records_of(tmp_path / "run").values()}
    assert failures == {"diverged: the loss at step 6 is not finite"}


def test_too_little_room_on_the_disk_is_seen_before_anything_is_done(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert bench(*flags(settings | {"--out": tmp_path / "run"}), "--quiet") == 2
    said = capsys.readouterr().err
    assert re.search(r"needs about [\d.]+[kM]B for SAEs and checkpoints, and 1kB are free: make room", said)
    assert files(tmp_path) == {}


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(settings, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert bench(*flags(settings | {"--out": tmp_path / "run"}), "--quiet") == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_folder_in_use_names_its_owner_and_a_lock_left_behind_binds_nobody(run, capsys):
    from sae_bench.records.run_folder import RunFolder

    folder, command = run
    with RunFolder(folder).locked():
        assert bench(*command) == 2
        assert f"is in use by process {os.getpid()} on " in capsys.readouterr().err
    (folder / ".lock").write_text("process 1 on nowhere")
    assert bench(*command) == 0
    assert not (folder / ".lock").exists()


def test_overwriting_deletes_the_run_and_nothing_else(run, settings, tmp_path):
    folder, _ = run
    (folder / "notes.txt").write_text("mine")
    other = [*flags(settings | {"--l0": 3, "--context-size": 16, "--out": folder}), "--quiet"]
    assert bench(*other) == 2
    assert bench(*other, "--overwrite") == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert {record["sae"]["target_l0"] for record in records_of(folder).values()} == {3}
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "thesis.tex").write_text("years of work")
    assert bench(*flags(settings | {"--out": tmp_path / "strange"}), "--overwrite") == 2
    assert files(tmp_path / "strange") == {"thesis.tex": b"years of work"}


def test_what_a_task_says_of_its_scores_stands_below_the_board_with_the_site(whole):
    old = read_record(next((whole / "records").glob("*.reconstruction.json")))
    said = Result(old.scores, caption="ten tokens hold everything")
    record = make_record(TASKS["reconstruction"](), said, None, old.sae, old.provenance)
    assert "layer_1.resid_post: ten tokens hold everything." in captions.caption([record, record])


# --- verify -------------------------------------------------------------------------------------------------------


def verified(folder: Path, capsys) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = bench("verify", folder, "--quiet")
    return code, capsys.readouterr().out.splitlines()[:-1]


def test_a_run_as_it_was_made_is_verified(run, capsys):
    assert verified(run[0], capsys) == (0, [])


def test_a_sample_is_verified_though_copies_of_its_documents_come_later(settings, corpus, capsys, tmp_path):
    """Their sums in the record are of all copies, so that only documents that the sample has completely can be held."""
    twice = tmp_path / "twice.jsonl"
    twice.write_text(2 * corpus.read_text())
    command = settings | {"--arch": "topk", "--dataset": twice, "--eval-tokens": 2400, "--out": tmp_path / "run"}
    assert bench(*flags(command), "--quiet") == 0
    found = records_of(tmp_path / "run")
    (record,) = [of for name, of in found.items() if name.endswith(".reconstruction.json")]
    assert 10 < record["provenance"]["eval_documents"] == len(record["by_document"]["variance"]) < 30
    capsys.readouterr()
    assert bench("verify", tmp_path / "run", "--quiet", "--contexts", 40) == 0, capsys.readouterr().out


def test_verification_finds_what_was_changed(run, capsys):
    folder, _ = run
    record = next((folder / "records").glob("relu*.reconstruction.json"))
    content = json.loads(record.read_text())
    content["by_document"]["cosine"][1] *= 1.1
    record.write_text(json.dumps(content))
    code, lines = verified(folder, capsys)
    assert code == 1
    assert any(line.startswith(record.name) and "checksum differs" in line for line in lines)
    # Sealed again by one who knows how, its number is still not what the SAE gives.
    content.pop("seal")
    write_sealed(record, content)
    code, lines = verified(folder, capsys)
    assert code == 1
    assert any("reconstruction of relu" in line and "cosine of document 1" in line for line in lines)


def test_verification_finds_other_weights_and_other_corpora(run, settings, capsys, tmp_path):
    folder, _ = run
    one, other = sorted((folder / "saes").iterdir())
    description = read_sealed(one / "sae_bench.json")
    shutil.copy(other / "sae_weights.safetensors", one / "sae_weights.safetensors")
    description["sha256"] = read_sealed(other / "sae_bench.json")["sha256"]
    description["files"]["sae_weights.safetensors"] = description["sha256"]
    write_sealed(one / "sae_bench.json", description)
    code, lines = verified(folder, capsys)
    assert code == 1
    assert any("records were made from other weights" in line for line in lines)
