"""`verify` and `submit` on the texts that tasks bring: whoever makes a probe's numbers better is found by measuring."""

import re
import shutil

import numpy as np
import pytest
from command import bench, flags, write_labelled

from sae_bench.evaluation.task import text_tasks
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.registry import TASKS
from sae_bench.runs.config import RunConfig

RECORD = "topk.layer_1.resid_post.w48.l0_6.seed0.sparse_probing.json"


@pytest.fixture(scope="module")
def run(gemma2_folder, corpus, at_work):
    """Two architectures of two seeds, with probes on two sets of one's own."""
    sets = tuple(write_labelled(at_work / f"{name}.csv", n) for name, n in (("one", 60), ("two", 80)))
    settings = {
        "--arch": ("topk", "random"), "--l0": 6, "--model": gemma2_folder, "--layer": 1, "--dataset": corpus,
        "--width": 48, "--tokens": 1200, "--reuse": 2, "--batch-size": 120, "--eval-tokens": 300, "--seed": (0, 1),
        "--context-size": 32, "--tasks": ("reconstruction", "sparse_probing"), "--probe-set": sets,
        "--out": at_work / "run",
    }  # fmt: skip
    assert bench(*flags(settings), "--quiet") == 0
    return at_work / "run"


@pytest.fixture
def stranger(run, tmp_path):
    return shutil.copytree(run, tmp_path / "board")


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    """They take seconds, and are a board's, not a submission's."""
    monkeypatch.setattr("sae_bench.leaderboard.board_folder.figures", lambda board: ())


def better(path, by=0.1):
    """A record whose probes on one latent do better in every set, and that agrees with itself."""
    content = read_sealed(path)
    values = content["by_document"]["auc_k1"] = [value + by for value in content["by_document"]["auc_k1"]]
    content["scores"]["auc_k1"]["value"] = float(np.mean(values))
    write_sealed(path, content)


def verified(folder, capsys):
    capsys.readouterr()
    code = bench("verify", folder)
    return code, capsys.readouterr().out.splitlines()


def test_the_first_sae_of_each_architecture_is_probed_again(run, capsys):
    code, lines = verified(run, capsys)
    assert code == 0, lines
    again = [line for line in lines if line.startswith("sparse_probing of")]
    assert again == [
        f"sparse_probing of {arch}.layer_1.resid_post.w48.l0_6.seed0: as recorded" for arch in ("topk", "random")
    ]
    assert "text of sparse_probing: as recorded" in lines


def test_a_probe_that_was_made_better_is_found(stranger, capsys):
    better(stranger / "records" / RECORD)
    code, lines = verified(stranger, capsys)
    assert code == 1
    assert [line for line in lines if line.startswith(f"sparse_probing of {RECORD.split('.sparse')[0]}: auc_k1 ")]


def test_records_without_their_sums_are_found_and_end_nothing(stranger, capsys):
    for task in ("sparse_probing", "reconstruction"):
        path = stranger / "records" / RECORD.replace("sparse_probing", task)
        write_sealed(path, read_sealed(path) | {"by_document": {}})
    code, lines = verified(stranger, capsys)
    assert code == 1
    sae = RECORD.removesuffix(".sparse_probing.json")
    for task in ("sparse_probing", "reconstruction"):
        assert any(
            re.match(rf"scores of {sae}\.{task}: \w+ is .*, of sums that it does not have", line) for line in lines
        )
    assert f"sparse_probing of {sae}: accuracy_dense is not in the record" in lines
    assert any(line.startswith(f"reconstruction of {sae}, ") and "has 0 documents" in line for line in lines)


def test_texts_that_are_others_now_are_named_and_not_measured(run, capsys):
    (file,) = run.parent.glob("two.csv")
    before = file.read_text()
    try:
        write_labelled(file, 84)
        code, lines = verified(run, capsys)
    finally:
        file.write_text(before)
    assert code == 1
    assert "text of sparse_probing: is not what the records were measured on (probe sets)" in lines
    assert not [line for line in lines if line.startswith("sparse_probing of")]


def test_where_the_texts_cannot_be_had_all_else_is_measured(run, capsys):
    (file,) = run.parent.glob("two.csv")
    moved = file.rename(run.parent / "elsewhere.csv")
    try:
        code, lines = verified(run, capsys)
    finally:
        moved.rename(file)
    assert code == 1
    (wrong,) = [line for line in lines if line.startswith("text of sparse_probing: ")]
    assert 'two.csv": no such file' in wrong
    assert len([line for line in lines if line.startswith("reconstruction of") and line.endswith("as recorded")]) == 4


def test_settings_of_a_run_are_its_own_and_those_that_are_kept(run):
    """Nobody brings in what decides numbers by the name of what does not."""
    manifest = read_sealed(run / "run.json")
    config = RunConfig.of_run(manifest)
    assert [name.rsplit("/")[-1] for name in config.probe_set] == ["one.csv", "two.csv"]
    forged = manifest | {"kept": manifest["kept"] | {"model": "demo", "plugins": ["evil.py"]}}
    assert RunConfig.of_run(forged) == config
    del manifest["kept"]
    assert RunConfig.of_run(manifest).probe_set == ()


def test_submit_probes_what_it_draws_and_refuses_what_was_made_better(run, stranger, tmp_path, capsys):
    assert bench("submit", run, "--results", tmp_path / "results", "--quiet", "--sample", 4) == 0
    measured = read_sealed(tmp_path / "results" / "run" / "submission.json")["measured"]
    assert measured["tasks"] == ["reconstruction", "sparse_probing"]
    assert measured["not_measured_again"] == []
    better(stranger / "records" / RECORD)
    capsys.readouterr()
    assert bench("submit", stranger, "--results", tmp_path / "results", "--quiet", "--sample", 4) == 2
    assert f"sparse_probing of {RECORD.split('.sparse')[0]}, measured again: auc_k1 " in capsys.readouterr().err


def test_a_token_score_of_another_ones_sums_is_found_in_a_sample_too(stranger, capsys):
    path = stranger / "records" / RECORD.replace("sparse_probing", "reconstruction")
    content = read_sealed(path)
    content["scores"]["cosine"] |= {name: content["scores"]["l0"][name] for name in ("value", "stderr", "formula")}
    write_sealed(path, content)
    capsys.readouterr()
    assert bench("verify", stranger, "--contexts", 4) == 1
    assert "cosine is cosine / tokens, the record has active / tokens" in capsys.readouterr().out


def test_a_set_that_only_the_record_has_is_found(stranger, capsys):
    path = stranger / "records" / RECORD
    content = read_sealed(path)
    content["by_document"] = {name: [*values, 0.9] for name, values in content["by_document"].items()}
    write_sealed(path, content)
    sae = RECORD.removesuffix(".sparse_probing.json")
    assert (
        f"sparse_probing of {sae}: the record has 3 units of the text, 2 are measured" in verified(stranger, capsys)[1]
    )


def test_only_tasks_whose_measuring_chooses_units_may_have_others():
    assert {name for name, task in text_tasks(TASKS).items() if task.chosen_units} == {"absorption"}
