"""Files of a run that are sealed and of another form, and logs that are none: one line, or left out with a word."""

import json
import logging

import pytest
from command import bench
from synthetic import records, seal, write_run

from sae_bench.leaderboard.board import Board


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", records(("topk",), targets=(16.0,), seeds=(0,)), n_latents=1)


@pytest.mark.parametrize("key", ["examples", "logits", "scores", "max", "histogram"])
@pytest.mark.parametrize("verb", ["report", "explain"])
def test_a_latent_of_another_form_is_one_line_that_names_its_file(run, capsys, verb, key):
    (path,) = run.glob("latents/*/0.json")
    content = json.loads(path.read_text())
    del content["seal"]
    seal(path, content | {key: [0.5]})
    more = [path.parent.name, "--latent", 0] if verb == "explain" else []
    code, said = bench(verb, run, *more), capsys.readouterr().err
    if (verb, key) == ("explain", "histogram"):  # which it does not show
        assert code == 0
        return
    assert code == 2
    assert said.startswith(f"error: {path} is of another form")
    assert said.count("\n") == 1


@pytest.mark.parametrize("content", ["", "{", "[1]\n", '{"tokens": "x"}\n', '{"l0": 1}\n', "[" * 10_000, "\xff"])
def test_a_training_log_that_is_none_is_left_out_with_a_word(run, caplog, content):
    (sae,) = Board.read([run]).saes
    assert len(sae.training_log()) == 32
    (path,) = run.glob("saes/*/metrics.jsonl")
    path.write_bytes(content.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert sae.training_log() == []
    assert f"{path} is not what was written: it is left out" in caplog.text


def test_a_changed_number_in_a_training_log_is_noticed(run, caplog):
    (path,) = run.glob("saes/*/metrics.jsonl")
    path.write_text(path.read_text().replace("1024", "1025"))
    (sae,) = Board.read([run]).saes
    assert sae.training_log() == []
    path.with_name("sae_bench.json").unlink()  # as in a board, where nothing says what it was
    assert len(sae.training_log()) == 32
