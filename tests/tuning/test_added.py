"""Recipes beside the first: for architectures that came later, by an equal search."""

import shutil
import tomllib
from pathlib import Path

import pytest
from command import bench, flags, write_corpus
from recipes import write_recipe

from sae_bench.errors import UserError
from sae_bench.leaderboard.captions import added_recipes
from sae_bench.lm.near_duplicates import RULE
from sae_bench.records.files import read_sealed
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.config import RunConfig
from sae_bench.runs.plan import settle
from sae_bench.runs.suite import configure
from sae_bench.runs.tuned import TunedArch


def write(folder: Path, name: str, label: str, lr: float, **changes: object) -> str:
    """A recipe for one architecture."""
    found = {label: TunedArch(version=ARCH_VERSIONS[label], settings={"lr": lr})}
    return write_recipe(folder / f"{name}.toml", found, **{"split": RULE, **changes})


ARCH_VERSIONS = {"topk": "1", "jumprelu": "2", "relu": "1"}


def configured(*archs: str, recipe: str | None = None, added: tuple[str, ...] = ()) -> RunConfig:
    asked = {"archs": list(archs), "model": "demo", "recipe": recipe, "added_recipes": list(added)}
    return configure(None, {name: of for name, of in asked.items() if of})


def test_each_architecture_is_trained_by_the_recipe_that_has_it(tmp_path: Path) -> None:
    topk, relu = write(tmp_path, "first", "topk", 0.0123), write(tmp_path, "second", "relu", 0.0456)
    config = configured("topk", "relu", recipe=topk, added=(relu,))
    assert [one.name for one in config.recipes] == ["first", "second"]
    assert [settle(arch, "short", config.tuned)[1].lr for arch in config.archs] == [0.0123, 0.0456]
    with pytest.raises(UserError, match="nothing for jumprelu"):
        settle(ArchSpec(name="jumprelu"), "short", config.tuned)


def test_what_was_added_is_no_part_of_what_others_are_known_by(tmp_path: Path) -> None:
    """So a board takes an architecture that was tuned after it was made."""
    topk, relu = write(tmp_path, "first", "topk", 0.0123), write(tmp_path, "second", "relu", 0.0456)
    alone, both = configured("topk", recipe=topk), configured("topk", "relu", recipe=topk, added=(relu,))
    assert alone.training_hash == both.training_hash
    assert alone.evaluation_hash == both.evaluation_hash
    assert "added_recipes" not in alone.identity
    assert "added_recipes" not in alone.asked
    assert both.asked["added_recipes"][0]["name"] == "second"
    assert alone.hash != both.hash, "a folder that nobody named is another"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trials": 3}, "another search than --recipe first .trials: 3, not 1.*tune anew"),
        ({"tokens": 8192, "model_sha256": "c" * 64}, "tokens: 8192, not 4096; model_sha256: 'c+', not 'a+'"),
        ({"check_seeds": 5}, "check_seeds: 5, not 2"),
    ],
)
def test_a_recipe_of_another_search_is_not_added(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    topk, relu = write(tmp_path, "first", "topk", 0.01), write(tmp_path, "second", "relu", 0.02, **changes)
    with pytest.raises(UserError, match=said):
        configured("topk", "relu", recipe=topk, added=(relu,))


def test_versions_and_what_came_of_it_may_differ(tmp_path: Path) -> None:
    topk = write(tmp_path, "first", "topk", 0.01)
    relu = write(tmp_path, "second", "relu", 0.02, versions={"torch": "2.11.0"}, model="copy")
    configured("topk", "relu", recipe=topk, added=(relu,))


def test_what_makes_no_sense_is_one_line(tmp_path: Path) -> None:
    topk, again = write(tmp_path, "first", "topk", 0.01), write(tmp_path, "again", "topk", 0.02)
    relu = write(tmp_path, "second", "relu", 0.02)
    with pytest.raises(UserError, match="--added-recipe second adds to --recipe: name that, too"):
        configured("relu", added=(relu,))
    with pytest.raises(UserError, match="--added-recipe again: --recipe first has topk, too"):
        configured("topk", recipe=topk, added=(again,))
    with pytest.raises(UserError, match="--added-recipe second: --recipe first has relu, too"):
        configured("topk", recipe=topk, added=(relu, relu))
    with pytest.raises(UserError, match=r"--added-recipe nowhere\.toml: No such file"):
        configured("topk", recipe=topk, added=("nowhere.toml",))
    with pytest.raises(UserError, match=r'--added-recipe: unknown recipe "nowhere"'):
        configured("topk", recipe=topk, added=("nowhere",))


def test_a_finished_board_takes_an_architecture_that_was_tuned_later(gemma2_folder, tmp_path, capsys):
    settings = {
        "--model": gemma2_folder, "--layer": 1, "--dataset": write_corpus(tmp_path / "corpus.jsonl", 1200),
        "--width": 64, "--tokens": 2000, "--reuse": 1, "--batch-size": 200, "--eval-tokens": 300,
        "--context-size": 32, "--l0": 12, "--tasks": "reconstruction", "--out": tmp_path / "run",
    }  # fmt: skip
    topk = settings | {"--arch": "topk", "--recipe": write(tmp_path, "first", "topk", 0.0123)}
    assert bench(*flags(topk), "--quiet") == 0
    folder = RunFolder(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run" / "saes").rglob("*.safetensors")}

    relu = topk | {"--arch": "relu", "--added-recipe": write(tmp_path, "second", "relu", 0.0456)}
    assert bench(*flags(relu), "--quiet") == 0
    by_arch = {record.sae.arch: record.sae for record in folder.records()}
    assert (by_arch["topk"].recipe["lr"], by_arch["topk"].tuned_by) == (0.0123, None)
    assert by_arch["relu"].recipe["lr"] == 0.0456
    assert by_arch["relu"].tuned_by.startswith("second ")
    for name, content in before.items():
        assert any(path.read_bytes() == content for path in (tmp_path / "run" / "saes").rglob(name))
    assert (
        "tuned_by"
        not in (tmp_path / "run" / "records")
        .joinpath(next(path.name for path in (tmp_path / "run" / "records").iterdir() if path.name.startswith("topk")))
        .read_text()
    ), "records from before stay as they are"
    assert added_recipes(by_arch.values()) == f", relu by {by_arch['relu'].tuned_by}"
    assert f"relu by {by_arch['relu'].tuned_by}" in " ".join((tmp_path / "run" / "leaderboard.md").read_text().split())

    capsys.readouterr()
    asked = read_sealed(tmp_path / "run" / "run.json")["asked"]
    assert [len(part.get("added_recipes", ())) for part in asked] == [0, 1]
    assert bench(*flags(topk), "--quiet") == 0, "the first command again finds nothing to do"
    assert read_sealed(tmp_path / "run" / "run.json")["asked"] == asked

    (tmp_path / "renamed.toml").write_bytes((tmp_path / "second.toml").read_bytes())
    shutil.copytree(tmp_path / "second", tmp_path / "renamed")
    assert bench(*flags(relu | {"--added-recipe": tmp_path / "renamed.toml"}), "--quiet") == 0, "what it holds decides"
    assert read_sealed(tmp_path / "run" / "run.json")["asked"] == asked
    capsys.readouterr()
    other = relu | {"--added-recipe": write(tmp_path, "other", "relu", 0.01)}
    assert bench(*flags(other | {"--l0": 6}), "--quiet") == 2
    assert f"has relu by {by_arch['relu'].tuned_by}, another file" in capsys.readouterr().err
    assert bench(*flags(relu | {"--l0": 6}), "--dry-run") == 0
    assert "tuned by first and second" in capsys.readouterr().out
    assert tomllib.loads((tmp_path / "second.toml").read_text())["archs"].keys() == {"relu"}


@pytest.mark.parametrize(
    ("lost", "said"), [((), "was begun with another"), (("saes", "records"), "the checkpoint was")]
)
def test_where_run_json_is_lost_saes_and_checkpoints_say_by_what_they_were_trained(tmp_path, capsys, lost, said):
    run = tmp_path / "run"
    settings = {
        "--model": "synthetic:small", "--width": 32, "--tokens": 1024, "--reuse": 1, "--batch-size": 256,
        "--eval-tokens": 1024, "--l0": 4, "--tasks": "reconstruction", "--arch": ("topk", "relu"), "--out": run,
    }  # fmt: skip
    about = {"dataset": "synthetic:small", "split": None}
    settings |= {"--recipe": write(tmp_path, "first", "topk", 0.01, **about)}
    second = write(tmp_path, "second", "relu", 0.02, **about)
    assert bench(*flags(settings | {"--added-recipe": second}), "--quiet") == 0
    (run / "run.json").unlink()
    for name in lost:
        shutil.rmtree(run / name)
    other = write(tmp_path, "other", "relu", 0.03, **about)
    capsys.readouterr()
    assert bench(*flags(settings | {"--added-recipe": other}), "--quiet") == 2
    error = capsys.readouterr().err
    assert said in error
    assert "lr 0.02 -> 0.03" in error
    assert bench(*flags(settings | {"--added-recipe": second}), "--quiet") == 0
