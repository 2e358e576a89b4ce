"""What the cache keeps is checked when a process first reads it, and made again if it is damaged."""

import logging

import pytest

from sae_bench.errors import UserError
from sae_bench.records import kept as of_kept
from sae_bench.records.kept import kept


@pytest.fixture(params=["file", "folder"])
def thing(request, tmp_path, monkeypatch):
    """A path, what makes it there, and the file that is damaged; a new process each time it is asked for."""
    path = tmp_path / "thing"
    inner = path if request.param == "file" else path / "deep" / "a"
    made = []

    def make():
        made.append(1)
        inner.parent.mkdir(parents=True, exist_ok=True)
        inner.write_text("content")

    def get(make=make):
        monkeypatch.setattr(of_kept, "_checked", set())
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

    def fail():
        raise UserError("the demo packages are missing: install them")

    with pytest.raises(UserError, match=rf"{inner} is damaged, and cannot be made again: the demo packages"):
        get(fail)
    assert inner.read_text() == "confent"
