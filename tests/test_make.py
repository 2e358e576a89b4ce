"""What `make` installs, and that with a file of hashes it is nothing else."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def installs(folder: Path, target: str = "demo") -> str:
    """What `make` would do for a fresh copy."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    return subprocess.run(
        ["make", "--dry-run", target], cwd=folder, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip


def test_versions_are_those_of_the_constraints(tmp_path):
    assert "--constraint constraints.txt --editable '.[demo]'" in installs(tmp_path)
    assert "--constraint constraints.txt --editable '.[demo,dev]'" in installs(tmp_path, "test")
    assert "--constraint constraints.txt --editable '.[docs]'" in installs(tmp_path, "docs")


def test_with_a_file_of_hashes_every_archive_is_held_against_it_and_the_project_brings_none(tmp_path):
    (tmp_path / "hashes.txt").touch()
    first, second = (line for line in installs(tmp_path).replace(" && ", "\n").splitlines() if "pip install" in line)
    assert "--require-hashes --no-deps --requirement hashes.txt" in first
    assert second.endswith("--no-deps --no-build-isolation --editable .")


def hashes():
    spec = importlib.util.spec_from_file_location("hashes", ROOT / "deploy" / "hashes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(**download):
    one = {"metadata": {"name": "numpy", "version": "2.0"}, "download_info": download}
    project = {"metadata": {"name": "ours", "version": "1"}, "download_info": {"url": "file:///x", "dir_info": {}}}
    return {"install": [project, one]}


def test_every_archive_of_a_report_has_its_hash_in_the_file():
    given = report(url="x.whl", archive_info={"hash": "sha256=ab", "hashes": {"sha256": "ab"}})
    assert hashes().requirements(given) == ["numpy==2.0 --hash=sha256:ab"]


def test_an_index_that_says_no_hash_is_of_no_use():
    with pytest.raises(ValueError, match=r"numpy 2\.0: the index says no SHA-256"):
        hashes().requirements(report(url="x.whl", archive_info={}))
