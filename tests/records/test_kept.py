"""What the cache keeps is checked when a process first reads it, and made again if it is damaged."""

import errno
import logging
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sae_bench.errors import UserError
from sae_bench.records import content
from sae_bench.records import kept as of_kept
from sae_bench.records.files import sha256, write_sealed
from sae_bench.records.kept import kept


@pytest.fixture(params=["file", "folder"])
def thing(request, tmp_path, monkeypatch):
    """A path, what makes it there, and the file that is damaged; a new process each time it is asked for."""
    path = tmp_path / "thing"
    inner = path if request.param == "file" else path / "deep" / "a"
    made = []

    def make(place):
        made.append(place)
        file = place / inner.relative_to(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content")

    def get(make=make):
        monkeypatch.setattr(of_kept, "_checked", set())
        monkeypatch.setattr(of_kept, "_elsewhere", {})
        return kept(path, make)

    return get, inner, made


def test_what_is_whole_is_made_once(thing, caplog):
    get, inner, made = thing
    for _ in range(3):
        assert get().exists()
    assert (len(made), inner.read_text(), caplog.text) == (1, "content", "")


@pytest.mark.parametrize("damage", ["flipped", "longer", "gone", "unsealed", "bad seal"])
def test_what_is_damaged_is_made_again_with_a_word(thing, damage, caplog):
    get, inner, made = thing
    seal = of_kept._seal_of(get())
    match damage:
        case "flipped":
            inner.write_text("confent")
        case "longer":
            inner.write_text("content ")
        case "gone":
            inner.unlink()
        case "unsealed":
            seal.unlink()
        case _:
            seal.write_text("{}")
    with caplog.at_level(logging.WARNING):
        get()
        get()
    assert (len(made), inner.read_text()) == (2, "content")
    assert ("it is made again" in caplog.text) == (not (damage == "gone" and inner.name == "thing"))
    assert not list(inner.parent.glob(".*.damaged"))


def test_what_cannot_be_made_again_is_named_and_stays(thing):
    get, inner, _ = thing
    get()
    inner.write_text("confent")

    def fail(place):
        raise UserError("the demo packages are missing: install them")

    with pytest.raises(UserError, match=rf"{inner} is damaged, and cannot be made again: the demo packages"):
        get(fail)
    assert inner.read_text() == "confent"


@pytest.fixture
def read_only(monkeypatch):
    """What makes the folder of a cache read-only, for root, too."""
    plain, mkdir = tempfile.TemporaryFile, Path.mkdir

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    def make_so(folder):
        of_kept._tell.cache_clear()
        monkeypatch.setattr(of_kept, "FileLock", refuse)
        monkeypatch.setattr(Path, "rename", refuse)
        monkeypatch.setattr(
            of_kept.tempfile, "TemporaryFile", lambda dir: refuse() if Path(dir) == folder else plain(dir=dir)
        )
        monkeypatch.setattr(
            Path, "mkdir", lambda path, *a, **how: refuse() if path == folder else mkdir(path, *a, **how)
        )

    return make_so


def test_of_a_cache_that_cannot_be_written_what_is_whole_is_read_and_the_rest_is_made_elsewhere(
    thing, read_only, caplog
):
    get, inner, made = thing
    path = get()
    read_only(path.parent)
    assert (get(), len(made)) == (path, 1)
    inner.write_text("confent")
    assert not caplog.text
    for damage in (lambda: None, lambda: path.replace(path.with_name("elsewhere"))):
        damage()
        other = get()
        assert (other / inner.relative_to(path)).read_text() == "content"
        assert not other.is_relative_to(path.parent)
        assert made[-1] == other
    assert caplog.text.count("cannot be written (Read-only file system): this goes on without") == 1
    assert path.with_name("elsewhere").exists(), "nothing there was touched"


def test_what_this_process_has_elsewhere_is_made_once(tmp_path, read_only):
    path, made = tmp_path / "thing", []
    read_only(tmp_path)

    def make(place):
        made.append(place)
        place.write_text("content")

    assert {kept(path, make) for _ in range(3)} == {*made}
    assert len(made) == 1


@pytest.mark.parametrize("what", ["file in the way", "not to be looked at"])
def test_small_things_that_the_cache_cannot_take_are_done_without(tmp_path, monkeypatch, caplog, what):
    of_kept._tell.cache_clear()
    if what == "file in the way":
        (tmp_path / "cache").write_text("")
    else:
        exists = Path.exists

        def looked_at(path, **how):
            if path.is_relative_to(tmp_path / "cache") and path != tmp_path / "cache":
                raise PermissionError(errno.EACCES, "Permission denied")
            return exists(path, **how)

        monkeypatch.setattr(Path, "exists", looked_at)
        monkeypatch.setattr(of_kept, "write_sealed", lambda *_: (_ for _ in ()).throw(UserError("cannot write it")))
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content.time, "time", lambda: 4e9)
    (tmp_path / "file").write_text("text")
    for _ in range(2):
        assert content.content_hash(tmp_path / "file") == sha256(tmp_path / "file")
    assert caplog.text.count("cannot be written") == 1


def test_what_is_written_into_the_cache_names_its_folder_if_it_cannot(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot write .* choose another folder with SAE_BENCH_CACHE"):
        write_sealed(tmp_path / "file" / "rates.json", {})
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"cannot write .* choose another --out"):
        write_sealed(tmp_path / "file" / "rates.json", {})


def test_a_killed_making_is_made_once_more_and_two_at_once_make_once(tmp_path):
    """What a process left aside when it was killed is cleared away by the next."""
    path = tmp_path / "thing"
    aside = path.with_name(".thing.damaged")
    aside.write_text("confent")
    made = []

    def make(place):
        made.append(1)
        time.sleep(0.1)  # the others have come by then
        path.write_text("content")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: kept(path, make), range(4)))
    assert (len(made), path.read_text(), aside.exists()) == (1, "content", False)


def test_what_goes_while_a_process_works_is_made_again(tmp_path):
    path, made = tmp_path / "thing", []

    def make(place):
        made.append(1)
        path.write_text("content")

    kept(path, make)
    path.unlink()
    assert (kept(path, make).read_text(), len(made)) == ("content", 2)
