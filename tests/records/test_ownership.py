"""Nothing is deleted, copied or published but what a seal says is ours, and nothing behind a link."""

import os
import shutil

import pytest
from command import bench, files, flags
from synthetic import records, seal, write_run

from sae_bench.errors import UserError
from sae_bench.records.ownership import Ownership
from sae_bench.records.run_folder import RunFolder

USERS = {
    "thesis.tex": "t",
    "report.html": "my page",
    "leaderboard.md": "by hand",
    "figures/plot.svg": "work",
    "figures/.mine.tmp": "p",
    "records/patients.csv": "data",
    "saes/notes.txt": "n",
    "latents/topk/7.txt": "t",
    "checkpoints/mine.safetensors": "w",
    "wandb/run-1/log": "l",
}


def put(folder, contents):
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def texts(folder):
    return {name: content.decode() for name, content in files(folder).items()}


@pytest.fixture
def run(tmp_path):
    """A run's folder with everything that a run writes, as far as deleting looks at it, and a file of none."""
    folder = write_run(tmp_path / "run", records(("topk",), (16.0,)), n_latents=2)
    saes = [path.name for path in (folder / "saes").iterdir()]
    sae = saes[0]
    seal(folder / "run.json", {"config": {"tokens": 1}, "config_hash": "c" * 64, "saes": saes})
    seal(folder / "checkpoints" / "00000040" / "checkpoint.json", {"config_hash": "c" * 64, "sha256": {sae: "of it"}})
    put(folder, {f"checkpoints/00000040/{sae}.safetensors": "w", f"saes/{sae}/.a.json.123.sae-bench.tmp": "torn"})
    RunFolder(folder).write_cells({"a": [sae]})
    put(folder, {"logs/a.log": "", "logs/driver.log": "", f"tensorboard/{sae}/events.out.tfevents.1": ""})
    return folder


@pytest.mark.parametrize("manifest", ["whole", "damaged", "emptied", "lost"])
def test_overwriting_deletes_a_run_and_leaves_every_file_of_its_user(run, manifest):
    put(run, USERS)
    match manifest:
        case "damaged":
            (run / "run.json").write_text((run / "run.json").read_text().replace("tokens", "token5"))
        case "emptied":
            (run / "run.json").write_text("")
        case "lost":
            (run / "run.json").unlink()
    RunFolder(run).clear()
    assert texts(run) == USERS


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_holds_no_run_is_left_alone(tmp_path, overwrite, capsys):
    """Nor is it one for having another program's run.json, or an empty one."""
    for also in ({}, {"run.json": '{"config": 1}'}, {"run.json": ""}):
        paper = put(tmp_path / f"paper{len(also)}{len(also.get('run.json', ''))}", USERS | also)
        before = texts(paper)
        settings = {"--arch": "topk", "--l0": 4, "--model": "demo", "--out": paper}
        assert bench(*flags(settings), *(["--overwrite"] if overwrite else [])) == 2
        assert "is not empty and holds no run: choose another --out" in capsys.readouterr().err
        assert texts(paper) == before


def test_what_the_next_run_would_take_for_its_own_is_named_before_anything_is_deleted(run):
    put(run, {"records/notes.json": '{"mine": 1}'})
    before = files(run)
    with pytest.raises(UserError, match=r"notes\.json is no record of this run.*move it"):
        RunFolder(run).clear()
    (run / "records" / "notes.json").unlink()
    outside = put(run.parent / "outside", {"keep.json": "k"})
    (run / "latents" / "link").symlink_to(outside)
    with pytest.raises(UserError, match=r"link is a link: --overwrite deletes in --out .* alone"):
        RunFolder(run).clear()
    assert {name: content for name, content in files(run).items() if "link" not in name} == {
        name: content for name, content in before.items() if name != "records/notes.json"
    }
    assert texts(outside) == {"keep.json": "k"}


def test_cleaning_up_takes_our_torn_files_and_follows_no_link(run):
    outside = put(run.parent / "outside", {".a.json.123.sae-bench.tmp": "p", ".precious.tmp": "p"})
    put(run, {"figures/.mine.tmp": "p"})
    (run / "records" / "link").symlink_to(outside)
    (run / ".run.json.12.sae-bench.tmp").symlink_to(outside / ".precious.tmp")
    with RunFolder(run).locked():
        pass
    assert len(files(outside)) == 2
    assert (run / "figures" / ".mine.tmp").exists()
    assert not [name for name in files(run) if name.startswith("saes/") and name.endswith(".tmp")]


def test_a_run_whose_manifest_is_lost_is_shared_with_no_other(run):
    """Its files say which settings they were made with."""
    for content in (None, "", "\0" * 40, "{"):
        (run / "run.json").unlink(missing_ok=True) if content is None else (run / "run.json").write_text(content)
        with pytest.raises(UserError, match=r"holds a run with other settings, whose run\.json is lost"):
            RunFolder(run).check_free({"d" * 64, "e" * 64})
        RunFolder(run).check_free({"c" * 64, "d" * 64})
        assert Ownership(run).made_with == {"c" * 64}


def test_old_checkpoints_go_without_the_files_that_somebody_put_there(run, tmp_path):
    from sae_bench.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(tmp_path / "c", ["c"])
    for step in (1, 2, 3):
        checkpoints.save(step, {"topk": {"n": step}}, {})
        put(tmp_path / "c", {f"{step:08d}/notes.txt": "n"})
    os.symlink(run, tmp_path / "c" / "00000009")
    checkpoints.save(4, {"topk": {"n": 4}}, {})
    assert {name for name in files(tmp_path / "c") if name.startswith(("00000001", "00000002"))} == {
        "00000001/notes.txt",
        "00000002/notes.txt",
    }
    assert checkpoints.load(["topk"]).step == 4
    assert (run / "run.json").exists()


# --- boards ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("measured") / "run", records(("topk",), (16.0, 64.0)), n_latents=1)


def test_a_board_draws_over_nothing_but_what_was_drawn(measured, tmp_path, capsys):
    paper = put(tmp_path / "paper", {"report.html": "my page", "figures/plot.svg": "work"})
    before = texts(paper)
    assert bench("board", measured, "--out", paper) == 2
    assert "report.html was not drawn here, or was changed since" in capsys.readouterr().err
    assert texts(paper) == before
    (paper / "report.html").unlink()
    assert bench("board", measured, "--out", paper) == 0
    assert bench("board", measured, "--out", paper) == 0
    assert (paper / "figures" / "plot.svg").read_text() == "work"
    (paper / "claims.md").write_text("by hand")
    assert bench("board", paper) == 2
    assert bench("board", paper, "--overwrite") == 0
    assert (paper / "claims.md").read_text() != "by hand"
    assert bench("figures", measured, "--out", put(tmp_path / "f", {"quality.svg": "mine"})) == 2
    (measured / "report.html").write_text("mine")
    assert bench("report", measured) == 2
    assert (measured / "report.html").read_text() == "mine"
    (measured / "report.html").unlink()


def test_nothing_is_drawn_through_a_link(measured, tmp_path, capsys):
    outside, paper = put(tmp_path / "outside", {"a.txt": "a"}), put(tmp_path / "paper", {"a.txt": "a"})
    (paper / "figures").symlink_to(outside)
    assert bench("board", measured, "--out", paper) == 2
    assert "is a link, behind one, or no file" in capsys.readouterr().err
    assert texts(outside) == {"a.txt": "a"}


def test_a_figure_that_is_drawn_no_more_goes_and_a_changed_one_stays(measured, tmp_path):
    from sae_bench.records.ownership import write_drawn

    write_drawn(tmp_path, {"figures/old.svg": b"old", "figures/edited.svg": b"old", "claims.md": b"c"})
    put(tmp_path, {"figures/edited.svg": "new", "figures/mine.svg": "mine"})
    write_drawn(tmp_path, {"claims.md": b"c"}, instead_of="figures/")
    assert texts(tmp_path).keys() == {"figures/edited.svg", "figures/mine.svg", "claims.md", "drawn.json"}


@pytest.mark.parametrize("verb", ["board", "publish"])
def test_links_are_neither_copied_nor_published(measured, tmp_path, verb, capsys):
    run = shutil.copytree(measured, tmp_path / "run")
    path = next((run / "records").iterdir())
    shutil.move(path, tmp_path / "secret.json")
    path.symlink_to(tmp_path / "secret.json")
    command = ("board", run, "--out", tmp_path / "out") if verb == "board" else ("publish", run, "--repo", "a/b")
    assert bench(*command) == 2
    assert "is a link, or behind one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_training_log_that_no_seal_covers_is_not_copied(measured, tmp_path):
    run = shutil.copytree(measured, tmp_path / "run")
    logs = sorted(run.glob("saes/*/metrics.jsonl"))
    logs[0].write_text(logs[0].read_text().replace("loss", "l0ss"))
    assert bench("board", run, "--out", tmp_path / "board") == 0
    assert bench("board", tmp_path / "board", "--out", tmp_path / "again") == 0
    for board in ("board", "again"):
        copied = {path.parent.name for path in (tmp_path / board).glob("saes/*/metrics.jsonl")}
        assert copied == {path.parent.name for path in logs[1:]}
