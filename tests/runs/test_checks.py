"""What a run names is checked before its model is loaded, in a dry run too; and nothing is chosen in silence."""

import re

import pytest
from command import bench, flags

from sae_bench.lm import corpus as texts
from sae_bench.registry import CORPORA
from sae_bench.runs import checks, dry_run, sources
from sae_bench.runs.suite import configure


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    return {
        "--arch": "topk", "--l0": 6, "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 48,
        "--tokens": 1200, "--batch-size": 120, "--eval-tokens": 300, "--context-size": 32,
    }  # fmt: skip


WRONG = [
    ({"--arch": "topk:auxk=1"}, 'unknown setting "auxk"'),
    ({"--l0": 64}, "l0 64 is more than the width, 48"),
    ({"--site": "resid_pots"}, r'unknown site "resid_pots" \(did you mean "resid_post"'),
    ({"--layer": 7}, "--layer 7: .* has layers 0..3"),
    ({"--dataset": "nowhere/at/all.jsonl"}, 'no file or folder "nowhere/at/all.jsonl"'),
    ({"--dataset": "no name"}, '"no name" is no file here and no name of a data set'),
    ({"--judge-base-url": "http://127.0.0.1:1/v1"}, "needs --judge-model"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_what_is_wrong_shows_before_a_model_is_loaded(settings, change, message, capsys, monkeypatch, at_work):
    def loaded(*args, **kwargs):
        pytest.fail("a model was loaded")

    monkeypatch.setattr(sources, "load_language_model", loaded)
    monkeypatch.setattr(dry_run, "model_shape", loaded)
    for more in (["--quiet"], ["--dry-run"]):
        assert bench(*flags(settings | change), "--out", at_work / "wrong", *more) == 2
        assert re.search(message, capsys.readouterr().err)


def test_a_model_without_a_corpus_of_its_own_says_what_it_trains_on(gemma2_folder, monkeypatch):
    def said(**given):
        return checks.default_corpus(configure(None, {"archs": ("topk",), **given}))

    (line,) = said(model=str(gemma2_folder))
    assert str(gemma2_folder) in line
    assert "embedded one, docstrings of " in line
    assert "--dataset" in line
    assert not said(model="demo")
    assert not said(model="pythia-70m")
    assert not said(model=str(gemma2_folder), dataset="monology/pile-uncopyrighted")


def test_a_plan_says_how_often_a_small_corpus_is_read_again(settings, capsys, tmp_path):
    text = tmp_path / "small.txt"
    text.write_text("the cat sat on the mat\n\n" * 100)  # 2,400 letters, about 600 tokens
    assert bench(*flags(settings | {"--dataset": text}), "--dry-run") == 0
    assert f"{text} has about 600 tokens: --tokens 1,200 read it about 2.0 times (computed" in capsys.readouterr().out
    text.write_text("the cat sat on the mat\n\n" * 1000)
    assert bench(*flags(settings | {"--dataset": text}), "--dry-run") == 0
    assert "read it about" not in capsys.readouterr().out


def test_the_embedded_corpus_is_not_made_for_its_size(monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(CORPORA["embedded"], "_extract", lambda self: pytest.fail("it was made"))
    assert texts.size_of("embedded") is None
