"""Parts of one run become one board: the one that a single run would have made, to the byte."""

import shutil

import pytest
from command import bench, files, flags

from sae_bench.records.files import read_sealed, write_sealed

SETTINGS = {
    "--arch": ("relu", "topk"), "--width": 24, "--l0": (3, 5), "--tokens": 3000, "--batch-size": 130,
    "--buffer-tokens": 1000, "--eval-tokens": 1000, "--context-size": 257,
    "--tasks": ("reconstruction", "ground_truth"),
}  # fmt: skip
TABLES = [f"{name}.{form}" for name in ("leaderboard", "compare") for form in ("md", "csv", "tex")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of three seeds, and three of one each, all begun by themselves; one of other tokens."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "toy.toml").write_text("n_features = 48\nd_in = 16\nn_roots = 4\ndepth = 1\n")
    toy = {"--model": f"synthetic:{folder / 'toy.toml'}"}
    for name, of in {
        "whole": {"--seed": (0, 1, 2)},
        "first": {"--seed": 0},
        "second": {"--seed": 1},
        "third": {"--seed": 2},
        "longer": {"--seed": 1, "--tokens": 4000},
    }.items():
        assert bench(*flags(SETTINGS | toy | of | {"--out": folder / name}), "--quiet") == 0
    return folder


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    """They take seconds, and are drawn of records as the tables are."""
    monkeypatch.setattr("sae_bench.leaderboard.board_folder.figures", lambda board: ())


def board(runs, out, *names):
    return bench("board", *(runs / name for name in names), "--out", out)


def test_parts_are_the_board_of_the_run_in_one(runs, tmp_path):
    assert board(runs, tmp_path / "whole", "whole") == board(runs, tmp_path / "parts", "first", "second", "third") == 0
    whole, parts = files(tmp_path / "whole"), files(tmp_path / "parts")
    assert parts.keys() == whole.keys()
    for name in (*TABLES, "claims.md", "claims.tex"):
        assert parts[name] == whole[name], name
    said, of_whole = (read_sealed(tmp_path / name / "run.json") for name in ("parts", "whole"))
    assert {*said["saes"]} == {*of_whole["saes"]}
    assert said["recipes"] == of_whole["recipes"]
    assert [of["seal"] for of in said["parts"]] == [
        # `read_sealed` gives what was sealed, without the seal
        (runs / name / "run.json").read_text().partition('"seal": "')[2][:64]
        for name in ("first", "second", "third")
    ]


def test_parts_may_be_joined_one_after_the_other_and_drawn_again(runs, tmp_path):
    assert board(runs, tmp_path / "at once", "first", "second", "third") == 0
    assert board(runs, tmp_path / "two", "first", "second") == 0
    assert bench("board", tmp_path / "two", runs / "third", "--out", tmp_path / "then") == 0
    assert files(tmp_path / "then") == files(tmp_path / "at once")
    assert bench("board", tmp_path / "then") == 0
    assert files(tmp_path / "then") == files(tmp_path / "at once")


def test_a_board_of_parts_says_that_seeds_of_several_were_not_compared(runs, tmp_path):
    for name in ("whole", "first", "third"):
        shutil.copytree(runs / name, tmp_path / name)
    toy = ["--model", f"synthetic:{runs / 'toy.toml'}", "--tasks", "stability", "--quiet"]
    for name, seeds in {"whole": (0, 1, 2), "first": (0, 1), "third": (2,)}.items():
        settings = {of: value for of, value in SETTINGS.items() if of != "--tasks"}
        assert bench(*flags(settings | {"--seed": seeds, "--out": tmp_path / name}), *toy) == 0
    assert bench("board", tmp_path / "first", tmp_path / "third", "--out", tmp_path / "parts") == 0
    assert bench("board", tmp_path / "whole") == 0
    said = "An SAE was held against 0 to 1 of 2 other seeds in stability."
    assert said in (tmp_path / "parts" / "leaderboard.md").read_text()
    assert "held against" not in (tmp_path / "whole" / "leaderboard.md").read_text()


def test_a_board_of_parts_is_submitted_with_the_weights_of_all(runs, tmp_path):
    assert board(runs, tmp_path / "parts", "first", "second") == 0
    for name in ("first", "second"):
        shutil.copytree(runs / name / "saes", tmp_path / "weights" / "saes", dirs_exist_ok=True)
    to = ["--results", tmp_path / "results", "--weights", tmp_path / "weights", "--sample", 8, "--quiet"]
    assert bench("submit", tmp_path / "parts", *to) == 0
    assert len(read_sealed(tmp_path / "results" / "parts" / "submission.json")["measured"]["saes"]) == 8


def test_what_a_part_lacks_is_missed(runs, tmp_path, capsys):
    assert board(runs, tmp_path / "parts", "first", "second") == 0
    next((tmp_path / "parts" / "records").glob("topk.*seed1.ground_truth.json")).unlink()
    assert bench("submit", tmp_path / "parts", "--results", tmp_path, "--without-measuring", "--quiet") == 2
    assert "seed1.ground_truth.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("first", "first"), "is in {0} and in {0}: parts of a run have different SAEs"),
        (("whole", "second"), "seed1.ground_truth.json is in {0} and in {1}: parts of a run have different SAEs"),
        (("first", "longer"), "{1} is no part of the run in {0}: it differs in tokens (3000, 4000);"),
    ],
)
def test_what_are_no_parts_of_one_run_is_refused(runs, tmp_path, capsys, names, message):
    assert board(runs, tmp_path / "out", *names) == 2
    assert message.format(*(runs / name for name in names)) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_of_another_model_or_version_is_refused(runs, tmp_path, capsys):
    for change, message in (
        ({"dataset_sha256": "0" * 64}, "it differs in dataset_sha256 ("),
        ({"kept": {"absorption_words": 7}}, "it differs in absorption_words (150, 7);"),
        ({"asked": None}, "is of an earlier version, which wrote less down"),
        ({"asked": 7}, "is of another form than this version writes"),
        ({"recipes": 7}, "is of another form than this version writes"),
    ):
        shutil.rmtree(tmp_path / "second", ignore_errors=True)
        shutil.copytree(runs / "second", tmp_path / "second")
        said = read_sealed(tmp_path / "second" / "run.json") | change
        write_sealed(tmp_path / "second" / "run.json", {name: of for name, of in said.items() if of is not None})
        assert bench("board", runs / "first", tmp_path / "second", "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err


def test_parts_are_written_over_none_of_them_and_not_without_a_place(runs, tmp_path, capsys):
    before = files(runs / "first")
    for to in ([], ["--out", runs / "first"]):
        assert bench("board", runs / "first", runs / "second", *to) == 2
        assert "parts become a board in a folder of its own; choose another --out" in capsys.readouterr().err
    assert files(runs / "first") == before


def test_a_part_without_its_run_json_is_refused(runs, tmp_path, capsys):
    shutil.copytree(runs / "second", tmp_path / "second")
    (tmp_path / "second" / "run.json").unlink()
    assert bench("board", runs / "first", tmp_path / "second", "--out", tmp_path / "out") == 2
    assert "second has no run.json" in capsys.readouterr().err


def test_parts_with_the_same_saes_on_other_tasks_are_refused(runs, tmp_path, capsys):
    """Where no file of the one has the name of one of the other."""
    for name, without in (("one", "ground_truth"), ("other", "reconstruction")):
        shutil.copytree(runs / "first", tmp_path / name)
        for path in [
            *tmp_path.glob(f"{name}/records/*.{without}.json"),
            *tmp_path.glob(f"{name}/saes/*/metrics.jsonl"),
        ]:
            path.unlink()
    assert bench("board", tmp_path / "one", tmp_path / "other", "--out", tmp_path / "out") == 2
    assert "seed0 is in" in (said := capsys.readouterr().err)
    assert "and in another part: parts of a run have different SAEs" in said


def test_parts_that_were_asked_for_other_tasks_are_refused(runs, tmp_path, capsys):
    """Their board would have SAEs that some of its tasks never saw."""
    shutil.copytree(runs / "second", tmp_path / "second")
    more = SETTINGS | {"--model": f"synthetic:{runs / 'toy.toml'}", "--tasks": "geometry", "--seed": 1}
    assert bench(*flags(more | {"--out": tmp_path / "second"}), "--quiet") == 0
    for parts in ((runs / "first", tmp_path / "second"), (tmp_path / "second", runs / "first")):
        assert bench("board", *parts, "--out", tmp_path / "out") == 2
        assert "were not both asked for geometry, and" in capsys.readouterr().err
