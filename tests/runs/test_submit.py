"""`submit`: a board in order is taken, with what was checked; whatever a stranger changed is refused in one line."""

import shutil
from itertools import product
from pathlib import Path

import pytest
from command import bench, files, flags
from forged_boards import ATTACKS, EDITED, of_a_share, of_all_documents, of_every_record, sealed_again

from sae_bench.errors import UserError
from sae_bench.records.files import read_sealed, sha256, write_sealed
from sae_bench.runs.submission import read_submission

SETTINGS = {
    "--arch": ("relu", "topk"), "--width": 24, "--l0": 3, "--tokens": 3000, "--batch-size": 130, "--seed": (0, 1),
    "--buffer-tokens": 1000, "--eval-tokens": 1000, "--context-size": 257,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in a world of 48 features: two architectures, two seeds."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "toy.toml").write_text("n_features = 48\nd_in = 16\nn_roots = 4\ndepth = 1\n")
    toy = {"--model": f"synthetic:{folder / 'toy.toml'}"}
    assert bench(*flags(SETTINGS | toy | {"--out": folder / "board"}), "--quiet") == 0
    return folder / "board"


@pytest.fixture(scope="module")
def grown(run, tmp_path_factory):
    """The same folder, asked for another architecture at another L0."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("grown") / "board")
    more = {"--arch": "gated", "--l0": 5}
    toy = {"--model": f"synthetic:{run.parent / 'toy.toml'}"}
    assert bench(*flags(SETTINGS | toy | more | {"--out": folder}), "--quiet") == 0
    return folder


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    """They take seconds, and are a board's, not a submission's."""
    monkeypatch.setattr("sae_bench.leaderboard.board_folder.figures", lambda board: ())


@pytest.fixture
def stranger(run, tmp_path):
    shutil.copytree(run, tmp_path / "board")
    return tmp_path / "board"


def submit(folder, tmp_path, *more):
    return bench("submit", folder, "--results", tmp_path / "results", "--quiet", *more)


def refused(folder, tmp_path, capsys, *more):
    """The one line of a refusal, after which nothing is there."""
    assert submit(folder, tmp_path, *more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert not (tmp_path / "results").exists()
    return line


def test_a_board_in_order_is_written_with_a_statement_and_by_one_seed_with_the_same_bytes(run, tmp_path, capsys):
    assert submit(run, tmp_path, "--seed", 7) == 0
    said = capsys.readouterr().out
    board = tmp_path / "results" / "board"
    statement = read_sealed(board / "submission.json")
    assert len(statement["measured"]["saes"]) == 3
    assert statement["measured"]["of"] == 4
    assert "ground_truth" in statement["measured"]["tasks"]
    assert set(statement["files"]) == {"run.json", *(name for name in files(board) if name.startswith("records/"))}
    assert all(sha256(board / name) == digest for name, digest in statement["files"].items())
    for part in ("3 of 4 SAEs (seed 7)", "probability of 75%", "git push -u origin board-board"):
        assert part in said
    before = files(board)
    assert not [name for name in before if name.endswith(".safetensors")]
    assert submit(run, tmp_path, "--seed", 7) == 0
    assert files(board) == before
    assert submit(board, tmp_path, "--seed", 7, "--weights", run) == 0, "the board in its place, as its reviewer has it"
    assert {name for name, content in files(board).items() if content != before[name]} == {"submission.json"}
    assert bench("board", board) == 0
    assert files(board).keys() == before.keys()


def test_without_weights_nothing_is_measured_and_that_has_to_be_asked_for(run, tmp_path, capsys):
    assert bench("board", run, "--out", tmp_path / "bare") == 0
    assert "give --weights with the run's folder or hf:owner/repo" in refused(tmp_path / "bare", tmp_path, capsys)
    assert submit(tmp_path / "bare", tmp_path, "--without-measuring") == 0
    assert "nothing was measured again: the numbers are the submitter's word" in capsys.readouterr().out
    assert read_sealed(tmp_path / "results" / "bare" / "submission.json")["measured"] is None


def test_weights_that_were_published_are_fetched_for_the_sample_alone(run, tmp_path, capsys, monkeypatch):
    assert bench("board", run, "--out", tmp_path / "bare") == 0
    fetched = []

    def fetch(repo, revision, folder, names):
        fetched.append((repo, revision, folder))
        return {name: run / folder / name for name in names if (run / folder / name).is_file()}, "commit"

    monkeypatch.setattr("sae_bench.runs.submit.fetch", fetch)
    assert submit(tmp_path / "bare", tmp_path, "--weights", "hf:me/saes@main", "--sample", 1, "--seed", 1) == 0
    statement = read_sealed(tmp_path / "results" / "bare" / "submission.json")
    assert statement["measured"]["weights"] == "hf:me/saes@main"
    assert {folder for *_, folder in fetched} >= {f"saes/{sae}" for sae in statement["measured"]["saes"]}
    monkeypatch.setattr("sae_bench.runs.submit.fetch", lambda *_: ({}, "commit"))
    assert submit(tmp_path / "bare", tmp_path, "--weights", "hf:me/saes") == 2
    assert "hf:me/saes has no saes/" in capsys.readouterr().err
    assert submit(tmp_path / "bare", tmp_path, "--weights", "hf:me/saes/there/is/more") == 2
    assert "write hf:owner/repo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "change", "told"),
    [
        ("reconstruction", of_all_documents, "squared_error of document "),
        ("feature_density", of_a_share, "dead_share is"),
    ],
)
def test_a_record_that_was_edited_and_sealed_again_is_found_by_measuring(
    stranger, tmp_path, capsys, task, change, told
):
    sealed_again(stranger / "records" / f"{EDITED}.{task}.json", change)
    line = refused(stranger, tmp_path, capsys, "--sample", 4)
    assert f"{task} of {EDITED}" in line
    assert told in line
    assert submit(stranger, tmp_path, "--without-measuring") == 0, "a seal does not show it"


def test_weights_that_were_swapped_are_found(stranger, tmp_path, capsys):
    one, other = (stranger / "saes" / f"topk.synthetic.w24.l0_3.seed{seed}" for seed in (0, 1))
    shutil.copy(other / "sae_weights.safetensors", one)
    assert f"{one / 'sae_weights.safetensors'} is covered by no seal" in refused(stranger, tmp_path, capsys)
    digest = sha256(one / "sae_weights.safetensors")

    def change(content):
        content["sha256"] = content["files"]["sae_weights.safetensors"] = digest

    sealed_again(one / "sae_bench.json", change)
    assert "records were made from other weights" in refused(stranger, tmp_path, capsys, "--sample", 4)
    for path in (stranger / "records").glob(f"{EDITED}.*.json"):
        sealed_again(path, lambda content: content["sae"].update(weights_sha256=digest))
    assert "measured again" in refused(stranger, tmp_path, capsys, "--sample", 4)


@pytest.mark.parametrize(("attack", "told"), ATTACKS)
def test_what_a_stranger_may_have_done_is_refused_in_one_line(stranger, tmp_path, capsys, attack, told):
    attack(stranger)
    assert told in refused(stranger, tmp_path, capsys, "--without-measuring")


def test_a_run_that_grew_is_taken_and_none_of_what_its_commands_asked_for_is_hidden(grown, tmp_path, capsys):
    assert submit(grown, tmp_path, "--without-measuring") == 0
    shutil.rmtree(tmp_path / "results")
    later = "gated.synthetic.w24.l0_5.seed0"
    for n, (told, asked) in enumerate(
        [
            ("asks for gated at synthetic, width 24, target 5, seed 0, of which there is no record", None),
            (f"has {later}, which no command asked for", slice(1)),
        ]
    ):
        folder = shutil.copytree(grown, tmp_path / str(n) / "board")
        if asked is None:
            for path in [*(folder / "records").glob(f"{later}.*"), *(folder / "saes" / later).iterdir()]:
                path.unlink()
            sealed_again(folder / "run.json", lambda content: content["saes"].remove(later))
        else:
            sealed_again(folder / "run.json", lambda content, kept=asked: content.update(asked=content["asked"][kept]))
        assert told in refused(folder, tmp_path, capsys, "--without-measuring")


def test_what_cannot_be_compared_is_no_board_and_is_said_before_anything_is_measured(grown, tmp_path, capsys):
    """As if the second command had been for another seed: whoever asks for it knows both."""
    folder = shutil.copytree(grown, tmp_path / "board")
    for name in ("gated.synthetic.w24.l0_5.seed0", "relu.synthetic.w24.l0_3.seed1", "topk.synthetic.w24.l0_3.seed1"):
        for path in [*(folder / "records").glob(f"{name}.*"), *(folder / "saes" / name).iterdir()]:
            path.unlink()
    seeds = {"relu": [0], "topk": [0], "gated": [1]}

    def change(content):
        content["saes"] = [name for name in content["saes"] if int(name[-1]) in seeds[name.split(".")[0]]]
        content["config"]["seeds"] = content["asked"][0]["seeds"] = [0]
        content["asked"][1]["seeds"] = [1]

    sealed_again(folder / "run.json", change)
    assert f"{folder}: the architectures at synthetic share no seed" in refused(folder, tmp_path, capsys)


def test_records_that_agree_on_another_architecture_are_held_against_the_weights(stranger, tmp_path, capsys):
    """topk's numbers under relu's name: asked for, and of no relu."""
    names = {"topk": "relu", "relu": "topk"}
    for path in (stranger / "records").glob("*.seed0.*.json"):
        sealed_again(path, lambda of: of["sae"].update(label=names[of["sae"]["label"]], arch=names[of["sae"]["arch"]]))
    assert submit(stranger, tmp_path, "--without-measuring") == 0, "who looks at no weights does not see it"
    shutil.rmtree(tmp_path / "results")
    assert "has another arch than its records say" in refused(stranger, tmp_path, capsys, "--sample", 4)
    for path in (stranger / "saes").glob("*.seed0/sae_bench.json"):
        sealed_again(path, lambda of: of["description"].update(
            label=names[of["description"]["label"]], arch=names[of["description"]["arch"]]))  # fmt: skip
    assert "is of another architecture than its records" in refused(stranger, tmp_path, capsys, "--sample", 4)


def test_tokens_and_documents_that_were_not_there_are_found_by_measuring(stranger, tmp_path, capsys):
    of_every_record(lambda content: content["provenance"].update(eval_tokens=10**9))(stranger)
    assert "eval_tokens, measured again: is now 1" in refused(stranger, tmp_path, capsys)


def test_what_somebody_keeps_in_the_board_s_place_is_not_lost(run, tmp_path, capsys):
    """Whatever would be written over is refused, and what would not be stays as it is."""
    there = tmp_path / "results" / "board"
    there.mkdir(parents=True)
    (there / "notes.txt").write_text("mine")
    for name in ("submission.json", "drawn.json", "leaderboard.md"):
        (there / name).write_text("mine")
        assert submit(run, tmp_path, "--without-measuring") == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{there / name} " in line
        assert line.endswith("move it elsewhere, or give another --name")
        assert {path.name: path.read_text() for path in there.iterdir()} == {name: "mine", "notes.txt": "mine"}
        (there / name).unlink()
    assert submit(run, tmp_path, "--without-measuring") == 0
    assert (there / "notes.txt").read_text() == "mine"


PUBLISHED = {
    "demo_2-core-cpu_2026-11-26": "holds no records, and tables say nothing without",
    "gemma-3-270m_2-core-cpu_2026-11-26": "was measured by reconstruction 1, this version has 2: run the same",
}
"""Boards that lack what `submit` asks for, and what it says of them; all others it takes."""


@pytest.mark.parametrize(
    "board", sorted((Path(__file__).parents[2] / "results").glob("*/")), ids=lambda path: path.name
)
def test_boards_that_are_published_are_in_order_or_say_why_not(board):
    if told := PUBLISHED.get(board.name):
        with pytest.raises(UserError, match=told):
            read_submission(board)
    else:
        found = read_submission(board).records
        saes, tasks = {sae for sae, _ in found}, {task for _, task in found}
        assert set(found) == {*product(saes, tasks)}, "every task of every SAE"
        assert saes == {path.name for path in (board / "saes").iterdir()}
        assert len(tasks) >= 3


def test_fingerprints_of_another_model_are_found_by_measuring(stranger, tmp_path, capsys):
    of_every_record(lambda content: content["provenance"].update(model_sha256="0" * 64))(stranger)
    assert "model_sha256, measured again: is now " in refused(stranger, tmp_path, capsys)


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "", "/tmp/out", "a b"])
def test_a_name_is_no_path(run, tmp_path, capsys, name):
    assert "is no name of a board" in refused(run, tmp_path, capsys, "--name", name, "--without-measuring")


def test_a_board_is_put_over_none_of_another_run_and_behind_no_link(run, tmp_path, capsys):
    results = tmp_path / "results"
    (results / "taken").mkdir(parents=True)
    write_sealed(results / "taken" / "run.json", {"config": {}})
    (tmp_path / "elsewhere").mkdir()
    (results / "link").symlink_to(tmp_path / "elsewhere")
    for name, told in (
        ("taken", "holds another board (its run.json differs)"),
        ("link", "is a link"),
        ("Taken", "in case alone"),
    ):
        assert submit(run, tmp_path, "--name", name, "--without-measuring") == 2
        assert told in capsys.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


def test_publish_names_the_board_in_card_and_tag(run, capsys):
    assert bench("publish", run, "--repo", "me/saes", "--board", "board_2026-11-27", "--dry-run") == 0
    card = capsys.readouterr().out
    assert "- sae-arch-bench-board-board_2026-11-27" in card
    assert "`results/board_2026-11-27`" in card
    assert bench("publish", run, "--repo", "me/saes", "--board", "../x", "--dry-run") == 2
    assert "is no name of a board" in capsys.readouterr().err
