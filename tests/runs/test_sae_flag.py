"""`--sae`: SAEs from elsewhere on the same board as our own, on the same tokens, with where they are from."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from command import bench, files, flags
from foreign_files import D, numbers, write_dictionary_learning, write_gemma_scope, write_saelens, write_sparsify

from sae_bench.runs.config import RunConfig
from sae_bench.saes.save import load_sae


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    return {
        "--model": gemma2_folder, "--dataset": corpus, "--width": 64, "--tokens": 1000, "--reuse": 1,
        "--batch-size": 200, "--eval-tokens": 300, "--context-size": 32,
    }  # fmt: skip


@pytest.fixture(scope="module")
def foreign(at_work) -> dict[str, Path]:
    """One SAE of every format, at layer 1."""
    return {
        "gemma-scope": write_gemma_scope(at_work / "g")[0],
        "saelens": write_saelens(at_work / "s", "gated")[0],
        "dictionary_learning": write_dictionary_learning(at_work / "d", "AutoEncoder")[0],
        "sparsify": write_sparsify(at_work / "p")[0],
    }


@pytest.fixture(scope="module")
def own(settings, at_work) -> Path:
    """A run of ours at the same site."""
    command = settings | {"--arch": ("topk", "relu"), "--layer": 1, "--l0": 6, "--out": at_work / "own"}
    assert bench(*flags(command), "--quiet") == 0
    return at_work / "own"


@pytest.fixture(scope="module")
def mixed(settings, foreign, own, at_work) -> Path:
    """All of them, evaluated and not trained."""
    sources = (*foreign.values(), own)
    assert bench(*flags(settings | {"--sae": sources, "--out": at_work / "mixed"}), "--quiet") == 0
    return at_work / "mixed"


def records_of(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((run / "records").iterdir())]


def test_foreign_and_own_saes_share_a_board_that_says_where_each_is_from(mixed, foreign, own):
    lines = [line for line in (mixed / "leaderboard.md").read_text().splitlines() if line.startswith("|")]
    assert "origin" in lines[0]
    assert len(lines) == 2 + len(foreign) + 2
    with open(mixed / "leaderboard.csv", newline="") as file:
        origins = {row["origin"] for row in csv.DictReader(file)}
    assert origins == {str(path) for path in (*foreign.values(), *(own / "saes").iterdir())}
    records = records_of(mixed)
    assert {record["sae"]["origin"]["format"] for record in records} == {*foreign, "sae-arch-bench"}
    assert {record["failure"] for record in records} == {None}
    where = {record["sae"]["origin"]["format"]: record["sae"]["origin"]["site_from"] for record in records}
    assert where == {"gemma-scope": "its path", "saelens": "cfg.json", "dictionary_learning": "config.json",
                     "sparsify": "its path", "sae-arch-bench": "sae_bench.json"}  # fmt: skip
    text = (mixed / "leaderboard.md").read_text()
    assert text.count("measured at model.layers.1, by ") == len(foreign) + 2
    assert len({record["provenance"]["eval_fingerprint"] for record in records}) == 1
    assert not (mixed / "checkpoints").exists(), "nothing is trained"


def test_an_sae_of_ours_scores_in_company_what_it_scored_in_its_own_run(mixed, own):
    """The same tokens, the same weights: the same numbers to the last bit."""
    before = {(r["sae"]["weights_sha256"], r["task"]): r["scores"] for r in records_of(own)}
    again = [r for r in records_of(mixed) if r["sae"]["origin"]["format"] == "sae-arch-bench"]
    assert len(again) == len(before)
    for record in again:
        assert record["scores"] == before[record["sae"]["weights_sha256"], record["task"]]


def test_what_is_evaluated_is_what_the_file_holds(mixed, foreign):
    (record,) = [r for r in records_of(mixed) if r["task"] == "reconstruction" and r["sae"]["label"] == "gated"]
    sae = load_sae(mixed / "saes" / record["sae"]["id"])
    x = numbers(100, D, seed=9)
    _, encode = write_saelens(mixed.parent / "again", "gated")
    torch.testing.assert_close(sae.encode(x).to_dense(), encode(x), rtol=1e-4, atol=1e-4)


def test_the_same_command_again_touches_nothing_and_verify_finds_all_as_recorded(mixed, settings, foreign, own, capsys):
    before = files(mixed)
    sources = (*foreign.values(), own)
    assert bench(*flags(settings | {"--sae": sources, "--out": mixed}), "--quiet") == 0
    assert files(mixed) == before
    assert bench("verify", mixed, "--quiet", "--contexts", 4) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" 0 not")


def test_a_run_stays_whole_when_its_sources_are_gone(settings, foreign, tmp_path):
    shutil.copytree(foreign["saelens"], tmp_path / "s")
    command = settings | {"--sae": tmp_path / "s", "--out": tmp_path / "run"}
    assert bench(*flags(command), "--quiet") == 0
    shutil.rmtree(tmp_path / "s")
    assert bench("verify", tmp_path / "run", "--quiet", "--contexts", 8) == 0
    assert bench("table", tmp_path / "run") == 0


def test_what_others_trained_is_not_published(mixed, capsys):
    assert bench("publish", mixed, "--repo", "me/saes", "--dry-run") == 2
    assert "no SAE of its own" in capsys.readouterr().err


def test_foreign_saes_stand_beside_what_the_same_command_trains(settings, foreign, tmp_path, capsys):
    command = settings | {"--sae": foreign["sparsify"], "--arch": "topk", "--l0": 6, "--layer": 1}
    assert bench(*flags(command | {"--out": tmp_path / "run"}), "--quiet") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "topk" in line.split()]
    assert len(rows) == 2
    assert sum("this run" in row for row in rows) == 1
    assert bench("compare", tmp_path / "run") == 0
    assert bench("claims", tmp_path / "run") == 0


def test_a_run_without_foreign_saes_says_nothing_of_them():
    """Its settings have the hash that they had before there were any."""
    settings = {"model": "demo", "sites": ["resid_post"], "seeds": [0], "archs": ["topk"]}
    plain = RunConfig.build(settings)
    assert "saes" not in plain.identity
    assert (
        plain.model_copy(update={"split": None}).hash
        == "e09d23b03e3a5aae6464616858d207e1dc8550cf5da521200b7acaf1fb876c1e"
    )
    one = RunConfig.build(settings | {"saes": [{"source": "a", "sha256": "1"}]})
    other = RunConfig.build(settings | {"saes": [{"source": "a", "sha256": "2"}]})
    assert len({plain.hash, one.hash, other.hash}) == 3


def test_a_board_of_our_own_has_no_column_of_origins(own):
    assert "origin" not in (own / "leaderboard.md").read_text()
    assert "origin" not in (own / "leaderboard.csv").read_text()


def test_a_dry_run_plans_foreign_saes_and_writes_nothing(settings, foreign, tmp_path, capsys):
    sources = (foreign["gemma-scope"], foreign["dictionary_learning"])
    assert bench(*flags(settings | {"--sae": sources, "--out": tmp_path / "run"}), "--dry-run") == 0
    text = capsys.readouterr().out
    assert text.count("to import") == 2
    assert "model.layers.1" in text
    assert not (tmp_path / "run").exists()


def altered(folder: Path, to: Path, **settings: object) -> Path:
    shutil.copytree(folder, to)
    content = json.loads((to / "cfg.json").read_text())
    metadata = content.pop("metadata", {})
    changed = {key: value for key, value in ((content | metadata) | settings).items() if value is not None}
    (to / "cfg.json").write_text(json.dumps(changed))
    return to


def test_what_does_not_fit_the_model_is_one_line_and_leaves_no_trace(settings, foreign, tmp_path, capsys):
    cases = {
        "32 wide": (altered(foreign["saelens"], tmp_path / "a", hook_name="blocks.1.attn.hook_z"), {}),
        "layers 0..3": (altered(foreign["saelens"], tmp_path / "b", hook_name="blocks.7.hook_resid_post"), {}),
        "give one with --layer": (altered(foreign["saelens"], tmp_path / "nowhere", hook_name=None), {}),
        "give one with --site": (altered(foreign["saelens"], tmp_path / "somewhere", hook_name=None), {"--layer": 1}),
        "does not exist": (tmp_path / "c", {}),
    }
    for part, (path, more) in cases.items():
        assert bench(*flags(settings | more | {"--sae": path, "--out": tmp_path / "run"}), "--quiet") == 2
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert part in line
        assert str(path) in line or "layer" in part
        assert not (tmp_path / "run" / "run.json").exists()


def test_flags_say_the_site_that_a_file_leaves_open(settings, foreign, tmp_path):
    path = altered(foreign["saelens"], tmp_path / "nowhere", hook_name=None)
    command = settings | {"--sae": path, "--layer": 2, "--site": "mlp_out", "--out": tmp_path / "run"}
    assert bench(*flags(command), "--quiet") == 0
    assert {record["sae"]["site"]["name"] for record in records_of(tmp_path / "run")} == {"layer_2.mlp_out"}


def test_figures_and_report_are_drawn_of_what_others_trained_too(mixed, at_work):
    assert bench("figures", mixed, "--out", at_work / "figures") == 0
    assert list((at_work / "figures").glob("*.svg"))
    assert bench("report", mixed) == 0
    assert "gemma-scope" in (mixed / "report.html").read_text()
    assert bench("table", mixed, "--group-by", "architecture") == 0
