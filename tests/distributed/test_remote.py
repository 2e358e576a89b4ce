"""A node's tasks run where the driver is, with the driver's own plugins, and write nothing anywhere else."""

import os
from pathlib import Path

import pytest

from sae_bench.distributed import remote
from sae_bench.distributed.remote import Errand, _enter
from sae_bench.errors import UserError


def entered(here: Path, plugins: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, cache: str | None = None) -> Path:
    """Where a task of a driver in `here` finds itself."""
    errand = Errand.__new__(Errand)
    for name, value in {"here": str(here), "plugins": plugins, "cache": cache}.items():
        object.__setattr__(errand, name, value)
    monkeypatch.chdir(here)  # which also brings the test back afterwards
    monkeypatch.setenv("SAE_BENCH_CACHE", "a run's before")
    _enter(errand)
    return Path.cwd()


def test_a_node_whose_plugin_is_another_one_takes_the_drivers_and_leaves_its_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_bytes(b"old = 1")
    assert entered(tmp_path, {"mine.py": b"old = 1"}, monkeypatch) == tmp_path
    found = entered(tmp_path, {"mine.py": b"new = 2"}, monkeypatch)
    assert found != tmp_path
    assert Path("mine.py").read_bytes() == b"new = 2"
    assert (tmp_path / "mine.py").read_bytes() == b"old = 1"


def test_a_run_has_the_cache_folder_of_its_driver_or_else_the_nodes(tmp_path, monkeypatch):
    for own in (None, "node's"):
        monkeypatch.setattr(remote, "OWN_CACHE", own)
        for drivers, wanted in (("driver's", "driver's"), (None, own)):
            entered(tmp_path, {}, monkeypatch, drivers)
            assert os.environ.get("SAE_BENCH_CACHE") == wanted


@pytest.mark.parametrize("name", ["{}/mine.py", "../mine.py"])
def test_a_plugin_outside_of_the_drivers_folder_that_a_node_lacks_is_not_written_there(tmp_path, monkeypatch, name):
    (tmp_path / "mine.py").write_bytes(b"old = 1")
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match="lead out of it"):
        entered(tmp_path / "here", {name.format(tmp_path): b"new = 2"}, monkeypatch)
    assert (tmp_path / "mine.py").read_bytes() == b"old = 1"
