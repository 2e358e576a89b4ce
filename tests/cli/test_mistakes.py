"""Every mistake on the command line is one line that names the thing, the value and the remedy, and leaves no trace."""

import pytest
import torch
from command import bench, complaint, files, flags, small_run
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def settings(gemma2_folder, corpus, at_work, tmp_path):
    return small_run(gemma2_folder, corpus, tmp_path / "out")


@pytest.fixture
def broken_model(gemma2_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(gemma2_folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(gemma2_folder).save_pretrained(tmp_path / "broken")
    return tmp_path / "broken"


MISTAKES = {
    "arch": ({"--arch": "jumprelo"}, ['architecture "jumprelo"', 'did you mean "jumprelu"?']),
    "setting": ({"--arch": "gated:penalti=l1"}, ['"penalti"', 'did you mean "penalty"?']),
    "setting's value": ({"--arch": "gated:penalty=l3"}, ["penalty", "'l3'", "'ri_l1'"]),
    "setting's form": ({"--arch": "gated:lr"}, ['"lr" is not key=value']),
    "setting twice": ({"--arch": "topk:lr=1e-3,lr=2e-3"}, ["lr is given twice"]),
    "setting's infinity": ({"--arch": "topk:lr=1e999"}, ["1e999 is no finite number"]),
    "setting's depth": ({"--arch": f"topk:lr={'[' * 5000}"}, ["is nested too deeply"]),
    "setting that no record holds": ({"--arch": "topk:lr=..."}, ["is no finite number, word or list"]),
    "task": ({"--tasks": "reconstructoin"}, ['task "reconstructoin"', 'did you mean "reconstruction"?']),
    "preset": ({"--preset": "papr"}, ["--preset", '"papr"', '"paper"', '"short"']),
    "suite": ({"--config": "smoky"}, ['suite "smoky"', 'did you mean "smoke"?']),
    "model": ({"--model": "demmo"}, ['model "demmo"', 'did you mean "demo"?']),
    "site": ({"--site": "resid_pos"}, ['site "resid_pos"', 'did you mean "resid_post"?']),
    "flag": ({"--archs": "topk"}, ["--archs", "Did you mean --arch?"]),
    "flag of another trainer": ({"--d-sae": 64}, ["--d-sae", "here it is --width"]),
    "flag of another trainer's spelling": ({"--hook_name": "x"}, ["--hook_name", "--layer and --site"]),
    "flag of another trainer for a setting": ({"--lr": 3}, ["--lr:", "--arch topk:lr=1e-3"]),
    "flag of a suite": ({"--suite": "smoke"}, ["--suite", "--config"]),
    "dtype": ({"--dtype": "float31"}, ["--dtype", '"float31"', '"float32"']),
    "device": ({"--device": "gpu"}, ['--device "gpu"', "no such device", "--device cpu"]),
    "device of a Mac": ({"--device": "mps"}, ['--device "mps"', "no float64", "--device cpu"]),
    "layer": ({"--layer": 99}, ["layer 99", "0..3"]),
    "negative layer": ({"--layer": -1}, ["--layer:", "-1", "greater than or equal to 0"]),
    "width": ({"--width": 0}, ["--width:", "'0'", "greater than 0"]),
    "count": ({"--width": "12q"}, ["'12q'", "write 4096, 16k"]),
    "k above the width": ({"--l0": 65}, ["topk", "65", "64"]),
    "L0 above the width": ({"--arch": "relu", "--l0": 65}, ["relu", "l0 65", "64", "lower --l0"]),
    "context": ({"--context-size": 129}, ["context size 129", "at most 128"]),
    "tokens": ({"--tokens": 127}, ["--tokens 127", "one batch of 256", "raise --tokens"]),
    "kernels": ({"--kernels": "dense", "--screening": "on"}, ["--screening on", "--kernels dense", "leave out"]),
    "held-out tokens": ({"--eval-tokens": 50_000}, ["50000", "--eval-tokens"]),
    "no corpus": ({"--dataset": "./nothing.jsonl"}, ['"./nothing.jsonl"', "check the path"]),
    "column": ({"--text-column": "body"}, ['column "body"', "known: text"]),
    "plugin": ({"--plugin": "nothing.py"}, ['--plugin "nothing.py"', "no such Python file"]),
    "no plugin": ({"--plugin": "README.md"}, ['--plugin "README.md"', ".py file"]),
    "both sparsities": ({"--l0": 8, "--sparsity": 8}, ["--l0 and --sparsity", "give one"]),
    "endless": ({"--l0": "inf"}, ["--l0:", "inf"]),
    "astronomical": ({"--tokens": "1e400"}, ["tokens", "1e400", "smaller"]),
    "short context": ({"--context-size": 2}, ["context", "2", "greater than or equal to 3"]),
    "sink": ({"--log-to": "wandb"}, ["--log-to wandb", "pip install", "[wandb]"]),
}


def test_a_verb_that_takes_no_settings_is_told_of_none(capsys):
    assert bench("table", "--lr", 3) == 2
    assert "here it is" not in capsys.readouterr().err
    assert bench("tune", "--steps", 3) == 2
    assert "here it is --tokens" in capsys.readouterr().err


@pytest.mark.parametrize(("changed", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_name_value_and_remedy(capsys, settings, changed, parts):
    line = complaint(capsys, settings | changed, settings["--out"])
    assert [part for part in parts if part not in line] == []


def test_an_empty_corpus_is_a_mistake(capsys, settings, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    assert "holds no text" in complaint(capsys, settings | {"--dataset": tmp_path / "empty.jsonl"}, settings["--out"])


def test_a_model_that_computes_nan_is_a_mistake(capsys, settings, broken_model):
    line = complaint(capsys, settings | {"--model": broken_model}, settings["--out"])
    assert "not all finite" in line
    assert "float32" in line


def test_activations_that_overflow_are_a_mistake(capsys, settings, monkeypatch):
    """Sound logits, but the site itself carries an infinity."""
    monkeypatch.setattr("sae_bench.lm.model.LanguageModel.check_logits", lambda lm: None)
    monkeypatch.setattr("sae_bench.lm.sites.run_until_seen", poisoned_run)
    monkeypatch.setattr("sae_bench.lm.model.run_until_seen", poisoned_run)
    assert "layer_1.resid_post: activations" in complaint(capsys, settings, settings["--out"])


def poisoned_run(model, tokens, points):
    seen = {key: torch.ones(*tokens.shape, 32) for key in points}
    for x in seen.values():
        x[:, -1, 7] = torch.inf
    return seen


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("tokens = = 3", "not valid TOML"),
        ("token = 3", 'did you mean "tokens"?'),
        ("archz = []", 'did you mean "arch"?'),
        ("arch = ['topk']\narchs = ['relu']", '"arch" and "archs" are one setting: give it once'),
        ("plugins = [3]", "plugin: write a text or a list of texts (given: [3])"),
        ("sae = [3]", "sae: write a text or a list of texts (given: [3])"),
        ("l0 = []", "l0: give a value, or leave it out"),
        (None, "No such file"),
    ],
)
def test_a_suite_that_cannot_be_read_is_a_mistake(capsys, settings, tmp_path, text, part):
    suite = tmp_path / "suite.toml"
    if text is not None:
        suite.write_text(text)
    line = complaint(capsys, settings | {"--config": suite}, settings["--out"])
    assert str(suite) in line
    assert part in line


def test_a_file_or_a_strange_folder_is_no_place_for_a_run(capsys, settings, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    before = files(tmp_path)
    for out in (tmp_path / "file", tmp_path / "folder", tmp_path / "file" / "below"):
        assert bench(*flags(settings | {"--out": out}), "--quiet") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(out) in line
    assert files(tmp_path) == before


def test_an_unknown_verb_and_an_unknown_list_are_mistakes(capsys):
    assert bench("tabel", "runs") == 2
    assert 'unknown verb "tabel" (did you mean "table"?' in capsys.readouterr().err
    assert bench("ls", "arch") == 2
    assert "archs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["--l0"], "--l0: give a value, or leave it out"),
        (["--tasks"], "--tasks: give a value, or leave it out"),
        (["--l0", "16,,32"], "--l0: a value is missing beside a comma"),
        (["--layer", ",all"], "--layer: a value is missing beside a comma"),
        (["--l0", "4,x"], "--l0: should be a valid number, unable to parse string as a number (given: 'x')"),
        (["--model", "demo", "pythia-70m"], '"pythia-70m" is too much: --model takes one value'),
        (["tabel"], 'unknown verb "tabel" (did you mean "table"?'),
    ],
)
def test_what_is_missing_or_too_much_is_named(capsys, command, says):
    assert bench(*command) == 2
    assert f"error: {says}" in capsys.readouterr().err
