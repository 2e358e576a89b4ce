"""A scorer in a user's file, that of the documentation, takes part in everything: flag, questions, record, table."""

import hashlib
import re

import pytest
from command import bench, flags
from fake_judge import fake_judge, nay_sayer
from test_docs import ROOT, code_blocks

from sae_bench import SCORERS
from sae_bench.autointerp.prompt import Prompt
from sae_bench.errors import UserError
from sae_bench.records.files import read_sealed

(SCORER,) = code_blocks(ROOT / "docs" / "autointerp.md", "python")
(PROMPT,) = re.findall(r'Prompt\.parse\("""\\\n(.*?)"""\)', SCORER, flags=re.S)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The plugin's file; what it registers is forgotten afterwards."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))
    for name in SCORERS:
        SCORERS[name]  # a built-in registers only once
    monkeypatch.setattr(SCORERS, "_classes", dict(SCORERS._classes))
    (tmp_path / "scorer.py").write_text(SCORER)
    return tmp_path / "scorer.py"


def test_a_scorer_in_a_file_of_ones_own_is_asked_scored_recorded_and_shown(
    plugin, tmp_path, gemma2_folder, corpus, at_work, capsys
):
    with fake_judge(nay_sayer) as server:
        command = {
            "--plugin": plugin, "--arch": "topk", "--model": gemma2_folder, "--layer": 1, "--dataset": corpus,
            "--width": 64, "--l0": 6, "--tokens": 1000, "--reuse": 2, "--batch-size": 250, "--eval-tokens": 200,
            "--context-size": 33, "--tasks": ("reconstruction", "autointerp"), "--interp-tokens": 900, "--latents": 3,
            "--autointerp-scorers": ("one_of_four", "detection"), "--judge-model": "toy",
            "--judge-base-url": server.base_url, "--out": tmp_path / "run",
        }  # fmt: skip
        assert bench(*flags(command)) == 0
        shown = capsys.readouterr()
        assert f"judge toy: {len(server.requests)} calls" in shown.err, "the estimate counts its questions"
        begins = [request["messages"][0]["content"][:18] for request in server.requests]
        assert "You are told what " in begins, "its own prompt is asked"
    assert bench("table", tmp_path / "run") == 0
    for text in (shown.out, capsys.readouterr().out):
        assert "one_of_four" in text.splitlines()[0]
        assert "Saying no to all four scores 0.750 in one_of_four." in " ".join(text.split())
        assert "saebench_detection" not in text
    record = read_sealed(next((tmp_path / "run").glob("records/*.autointerp.json")))
    assert record["scores"].keys() == record["metrics"].keys() == {"one_of_four", "detection"}
    assert (record["scores"]["one_of_four"]["value"], record["scores"]["detection"]["value"]) == (0.75, 0.5)
    assert record["metrics"]["one_of_four"]["description"].startswith("plain accuracy over 4 excerpts")
    assert record["details"]["judge"]["scorers"] == ["one_of_four", "detection"]
    assert record["details"]["judge"]["prompts"]["one_of_four"] == {
        "version": "1", "sha256": hashlib.sha256(PROMPT.encode()).hexdigest(),
    }  # fmt: skip
    for path in (tmp_path / "run").glob("latents/*/*.json"):
        assert read_sealed(path)["scores"]["one_of_four"]["value"] in (0.75, None)


def test_scorers_are_listed_with_those_of_a_plugin(plugin, capsys):
    assert bench("ls", "scorers", "--plugin", plugin) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(rows) == {
        "detection", "detection_auc", "fuzzing", "fuzzing_auc", "simulation", "saebench_detection", "one_of_four",
    }  # fmt: skip
    assert rows["one_of_four"].startswith("One of four: ")


def test_a_prompt_that_asks_for_what_is_not_given_says_so():
    prompt = Prompt.parse(PROMPT.replace("{{count}}", "{{cuont}}"))
    with pytest.raises(UserError, match=r'nothing is given for \{\{cuont\}\} \(did you mean "count"'):
        prompt.messages({"explanation": "x"}, count=4, example="{}")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("version 1", "Version 1", 'write "version 1"'),
        ("version 1", "version", 'write "version 1"'),
        ("--- user", "--- usr", 'unknown part "--- usr" (did you mean "user"'),
        ("--- user", "--- system", 'one "--- user"'),
        ("--- user", "--- example\nx\n--- user", 'an "--- answer" for every "--- example"'),
        ("--- user", "--- one\nx\n--- one\ny\n--- user", 'at most one "--- one"'),
    ],
)
def test_a_prompt_in_another_form_is_refused_with_the_form_that_it_has_to_have(old, new, complaint):
    assert Prompt.parse(PROMPT).user.endswith("Answer with JSON alone: {{example}}")
    with pytest.raises(UserError) as error:
        Prompt.parse(PROMPT.replace(old, new))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
