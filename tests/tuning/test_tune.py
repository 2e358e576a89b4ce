"""The command on a tiny language model: what it leaves behind, that it goes on, and what a board makes of it."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from command import bench, files, flags, write_corpus
from tiny import tiny_tokenizer

import sae_bench as sb
from sae_bench.errors import UserError
from sae_bench.lm.tokens import TokenStream
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.registry import ARCHITECTURES
from sae_bench.runs.tuned import read_recipe
from sae_bench.saes.knobs import Knob
from sae_bench.training import recipe


@pytest.fixture(scope="module")
def settings(gemma2_folder, at_work, tmp_path_factory):
    corpus = write_corpus(tmp_path_factory.mktemp("text") / "corpus.jsonl", 1200)
    return {
        "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 64, "--tokens": 2000, "--reuse": 1,
        "--batch-size": 200, "--eval-tokens": 300, "--context-size": 32, "--l0": (4, 12),
        "--arch": ("topk", "jumprelu"),
    }  # fmt: skip


RUNGS = ("rung_1", "rung_2", "check")

SEARCH = {"--trials": 4, "--factor": 2, "--check-seeds": 2}


@pytest.fixture(scope="module")
def tuned(settings, at_work) -> Path:
    out = at_work / "tuned"
    assert bench("tune", *flags(settings | SEARCH | {"--out": out}), "--quiet") == 0
    return out


def rung(out: Path, name: str) -> dict:
    return json.loads((out / f"{name}.json").read_text())


def eval_stream(settings: dict, part: str | None) -> str:
    """The fingerprint of the first held-out tokens of a part of the text."""
    stream = TokenStream(
        str(settings["--dataset"]),
        tiny_tokenizer(),
        split="eval",
        context_size=32,
        n_tokens=300,
        order_seed=0,
        part=part,
    )
    stream.read()
    return stream.fingerprint


def test_every_trial_is_recorded_and_the_best_go_on(tuned):
    first, second, check = (rung(tuned, name) for name in ("rung_1", "rung_2", "check"))
    assert [(one["arch"], one["trial"]) for one in first["trials"]] == [
        (arch, number) for arch in ("topk", "jumprelu") for number in range(4)
    ]
    assert all({(sae["wanted"], sae["seed"]) for sae in one["saes"]} == {(4, 0), (12, 0)} for one in first["trials"])
    went_on = {(one["arch"], one["trial"]) for one in first["trials"] if one["goes_on"]}
    assert {(one["arch"], one["trial"]) for one in second["trials"]} == went_on
    assert len(went_on) == 4
    of_topk = [one for one in first["trials"] if one["arch"] == "topk"]
    assert {one["trial"] for one in of_topk if one["goes_on"]} == {
        one["trial"] for one in sorted(of_topk, key=lambda one: -one["score"])[:2]
    }
    assert (first["config"]["tokens"], second["config"]["tokens"], check["config"]["tokens"]) == (1000, 2000, 2000)
    assert {sae["seed"] for one in check["trials"] for sae in one["saes"]} == {1, 2}
    assert first["eval_fingerprint"] == second["eval_fingerprint"] != check["eval_fingerprint"]
    assert {of["config"]["part"] for of in (first, second, check)} == {"tuning"}


def test_the_recipe_holds_the_winners_and_a_board_that_names_it_is_measured_on_other_text(tuned, settings, tmp_path):
    said = tomllib.loads((tuned / "recipe.toml").read_text())
    last = [one for one in rung(tuned, "rung_2")["trials"] if one["arch"] == "topk"]
    winner = max(last, key=lambda one: one["score"])
    assert said["archs"]["topk"]["settings"] == winner["settings"]
    assert said["tuning"] | {"trials": 4, "part": "tuning", "l0s": [4.0, 12.0]} == said["tuning"]
    assert "topk" in (tuned / "worth.md").read_text()
    board = settings | {"--arch": "topk", "--tasks": "reconstruction", "--out": tmp_path / "board", "--l0": 4}
    assert bench(*flags(board | {"--recipe": tuned / "recipe.toml"}), "--quiet") == 0
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "board" / "records").iterdir()]
    assert record["sae"]["label"] == "topk"
    trained_by = record["sae"]["recipe"] | record["sae"]["options"]
    assert trained_by | winner["settings"] == trained_by
    assert record["provenance"]["config"]["recipe"]["sha256"] == read_recipe(str(tuned / "recipe.toml")).sha256
    streams = {part: eval_stream(settings, part) for part in ("board", "tuning", None)}
    assert len(set(streams.values())) == 3
    assert record["provenance"]["eval_fingerprint"] == streams["board"]
    assert rung(tuned, "rung_1")["eval_fingerprint"] == streams["tuning"]
    assert "tuned by recipe" in (tmp_path / "board" / "leaderboard.md").read_text()


def test_from_python_it_is_the_same_search_and_its_numbers_are_tables(tuned, settings, tmp_path):
    out = shutil.copytree(tuned, tmp_path / "out")
    before = files(out)
    named = {name[2:].replace("-", "_"): of for name, of in (settings | SEARCH).items()}
    found = sb.tune(out=out, **named)
    assert files(out) == before, "all of it is there"
    trials = found.trials
    assert trials.groupby("rung").size().to_dict() == {name: len(rung(out, name)["trials"]) for name in RUNGS}
    said = {(name, one["arch"], one["trial"]): one for name in RUNGS for one in rung(out, name)["trials"]}
    for row in trials.to_dict("records"):
        one = said[row["rung"], row["architecture"], row["trial"]]
        assert {name: row[name] for name in one["settings"]} == one["settings"]
        assert row["may_not_win"] == "; ".join(one["may_not_win"])
        assert (None if np.isnan(row["score"]) else row["score"]) == one["score"]
    worth = found.to_dataframe().set_index("architecture")
    recipe = tomllib.loads(found.recipe.read_text())["archs"]
    assert {label: of["settings"] for label, of in recipe.items()} == worth["settings"].to_dict()
    shown = {line.split()[0]: line.split() for line in str(found).splitlines() if line}
    for label, row in worth.iterrows():
        kept = np.isnan(row["worth"])
        assert shown[label][1:4] == [
            f"{row['preset']:.4f}",
            *(("-", "-") if kept else (f"{row['tuned']:.4f}", f"{row['worth']:+.4f}")),
        ]
        assert kept or row["low"] < row["worth"] < row["high"]
    assert "2 architectures" in repr(found)
    with pytest.raises(sb.UserError, match=r"unknown setting|lets"):
        sb.tune(out=out, **named, lets=3)


@pytest.mark.parametrize("wrong", [{"trials": 1}, {"check_seeds": 1}, {"factor": 1}, {"rungs": 0}])
def test_from_python_no_such_amount_is_one_line_that_names_the_flag(settings, tmp_path, wrong):
    named = {name[2:].replace("-", "_"): of for name, of in (settings | SEARCH).items()} | wrong
    ((name, value),) = wrong.items()
    with pytest.raises(sb.UserError, match=rf"^--{name.replace('_', '-')}: should be .*\(given: {value!r}\)$"):
        sb.tune(out=tmp_path / "out", **named)
    assert not (tmp_path / "out").exists()


def test_workers_of_a_cluster_find_the_lock_of_the_rung_that_they_work_for(settings, tmp_path, monkeypatch):
    locked = []

    def work(config, folder, **more):
        locked.append((folder.path / ".lock").exists())
        raise UserError("seen")

    monkeypatch.setattr("sae_bench.api.tune.work", work)
    assert bench("tune", *flags(settings | SEARCH | {"--out": tmp_path / "out", "--on": "ray"})) == 2
    assert locked == [True]


def test_the_same_command_does_what_is_missing_and_ends_the_same(tuned, settings, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(tuned, again)
    for name in ("check.json", "recipe.toml", "worth.md"):
        (again / name).unlink()
    (again / "rung_2.json").write_text("{}")  # damaged
    times = {path: path.stat().st_mtime_ns for path in again.rglob("sae_weights.safetensors")}
    assert bench("tune", *flags(settings | SEARCH | {"--out": again}), "--quiet") == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times, "no SAE was trained again"
    for name in ("recipe.toml", "worth.md"):
        assert (again / name).read_bytes() == (tuned / name).read_bytes()
    assert bench("tune", *flags(settings | SEARCH | {"--out": again, "--trials": 5})) == 2
    assert "trials: 4 -> 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "part", "value"),
    [
        ("tuning", "began_with", [1]),
        ("tuning", "began_with", {"archs": 3, "files": {}}),
        ("rung_1", "trials", [{"arch": "topk", "trial": 0, "saes": [{"l0": "many"}]}]),
    ],
)
def test_a_sealed_file_that_says_other_things_than_ours_is_one_line(
    tuned, settings, tmp_path, capsys, name, part, value
):
    out = shutil.copytree(tuned, tmp_path / "out")
    write_sealed(out / f"{name}.json", read_sealed(out / f"{name}.json") | {part: value})
    assert bench("tune", *flags(settings | SEARCH | {"--out": out})) == 2
    assert f"{name}.json is of another form than this version writes" in capsys.readouterr().err


def test_a_tuning_goes_on_with_nothing_but_what_it_was_begun_with(tuned, settings, tmp_path, monkeypatch, capsys):
    """Its rungs are finished, so that nothing else would look: settings that no knob turns, versions, model, text."""
    out = shutil.copytree(tuned, tmp_path / "out")
    before = files(out)

    def refused(changed):
        assert bench("tune", *flags(settings | SEARCH | {"--out": out})) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"begun with something else ({changed})" in line
        assert files(out) == before

    with monkeypatch.context() as patch:
        patch.setitem(recipe._SHARED["short"], "lr_decay", 0.5)
        refused("jumprelu: lr_decay 0.2 -> 0.5; topk: lr_decay 0.2 -> 0.5")
    with monkeypatch.context() as patch:
        patch.setattr(ARCHITECTURES["topk"], "version", "99")
        refused("topk: version 1 -> 99")
    with monkeypatch.context() as patch:
        patch.setattr("sae_bench.tuning.tune.LR", Knob(1e-4, 3.2e-2))
        refused("jumprelu: lr low 0.001 -> 0.0001; topk: lr low 0.001 -> 0.0001")
    for name, file in (("language model", settings["--model"] / "config.json"), ("text", settings["--dataset"])):
        content = file.read_bytes()
        try:
            file.write_bytes(content + b"\n")
            refused(name)
        finally:
            file.write_bytes(content)
    assert bench("tune", *flags(settings | SEARCH | {"--out": out}), "--quiet") == 0, "and with that it does"
    write_sealed(out / "check.json", read_sealed(out / "check.json") | {"model_sha256": "0" * 64})
    assert bench("tune", *flags(settings | SEARCH | {"--out": out}), "--quiet") == 2
    assert "check.json has another model_sha256 than rung_1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"--l0": 4}, "--l0 4: recipes are compared at the very L0s wanted"),
        ({"--l0": (4, 5)}, "each 1.3 times"),
        ({"--preset": "paper"}, "--preset paper is what papers say"),
        ({"--tokens": 300}, "the first rung has 150 of them"),
        ({"--trials": 3, "--rungs": 3}, "need 4 at least"),
        ({"--arch": "random"}, "nothing of this is trained"),
        ({"--arch": "topk:lr=0.1"}, "lr is what `tune` looks for"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_trained(settings, tmp_path, changes, complaint, capsys):
    for more in ((), ("--dry-run",)):
        assert bench("tune", *flags(settings | SEARCH | {"--out": tmp_path / "out"} | changes), *more) == 2
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_states_trials_time_and_disk_of_every_rung(settings, tmp_path, capsys):
    assert bench("tune", *flags(settings | SEARCH | {"--out": tmp_path / "out"}), "--dry-run") == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:5] for line in said.splitlines() if line.strip()}
    assert rows["rung_1"] == ["4", "16", "1,000", "5"]
    assert rows["rung_2"] == ["2", "8", "2,000", "10"]
    assert rows["check"] == ["2", "16", "2,000", "10"]
    assert "jumprelu: lr 0.001 to 0.032, bandwidth 0.001 to 0.01" in said
    assert not (tmp_path / "out").exists()
