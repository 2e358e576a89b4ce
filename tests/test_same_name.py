"""SAEBench's package is imported as sae_bench, as ours is: where both are installed, somebody says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = "import sae_arch_bench; sae_arch_bench.main()"
LIST = ["ls", "tasks"]


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code that finds modules in these folders first."""
    arguments = [sys.executable, "-P", "-c", code, *LIST]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True)


@pytest.fixture
def theirs(tmp_path):
    """What the distribution sae-bench installs, in outline."""
    (tmp_path / "sae_bench" / "sae_bench_utils").mkdir(parents=True)
    (tmp_path / "sae_bench" / "__init__.py").touch()
    return tmp_path


@pytest.fixture
def mixed(theirs):
    """Both installed into one folder; what they both have is of the one that came last, SAEBench."""
    for path in (ROOT / "sae_bench").iterdir():
        if path.name != "__init__.py":
            (theirs / "sae_bench" / path.name).symlink_to(path)
    for name in ("architectures", "tasks", "suites"):
        (theirs / "sae_bench" / name).symlink_to(ROOT / name)
    return theirs


def test_the_command_says_that_another_package_is_found_in_its_place(theirs):
    done = python(COMMAND, theirs, ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: SAEBench's package, sae-bench, stands in this environment in the place of")
    assert done.stderr.count("\n") == 1


def test_the_command_says_that_another_package_replaced_a_file_of_ours(mixed):
    done = python(COMMAND, mixed, ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip uninstall sae-bench sae-arch-bench" in done.stderr


def test_files_of_both_in_one_folder_are_warned_of_and_ours_go_on(mixed):
    (mixed / "sae_bench" / "__init__.py").unlink()
    (mixed / "sae_bench" / "__init__.py").symlink_to(ROOT / "sae_bench" / "__init__.py")
    done = python(COMMAND, mixed, ROOT)
    assert done.returncode == 0
    assert "delta_lm_loss" in done.stdout
    assert f"{mixed / 'sae_bench'} holds files of SAEBench" in done.stderr


def test_alone_the_command_says_nothing_more():
    done = python(COMMAND, ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "delta_lm_loss" in done.stdout


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_refuses_an_environment_that_has_the_other_package(theirs, target):
    (theirs / "Makefile").symlink_to(ROOT / "Makefile")
    site = theirs / ".venv" / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/demo.stamp", ".venv/dev.stamp"):
        (theirs / name).touch()
    (theirs / ".venv" / "bin").mkdir()
    (theirs / ".venv" / "bin" / "python").touch()
    for name in ("demo.stamp", "dev.stamp"):
        os.utime(theirs / ".venv" / name, (2e9, 2e9 + (name == "dev.stamp")))
    (theirs / "sae_bench").rename(site / "sae_bench")
    done = subprocess.run(["make", target], cwd=theirs, capture_output=True, text=True)
    assert done.returncode != 0
    assert "error: SAEBench's package is in .venv" in done.stderr
