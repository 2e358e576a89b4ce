"""Files come whole, in pieces, and stay in the run's folder; a node that is lost halfway leaves nothing."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import files
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.distributed import courier as courier_module
from sae_bench.distributed.courier import Courier, Inbox, _pieces, _together
from sae_bench.distributed.desk import FilesOf, Part, Piece
from sae_bench.errors import UserError
from sae_bench.records.run_folder import RunFolder

TEN = 10


class AtOnce:
    """A desk whose driver answers at once; keeps what it was asked, and what it answered."""

    def __init__(self, run: Path) -> None:
        self.inbox = Inbox(RunFolder(run), None)
        self.asked: list[tuple[object, object]] = []
        self.bring = SimpleNamespace(remote=self._answer)

    def _answer(self, matter: object) -> object:
        self.asked.append((matter, self.inbox._answer(matter)))
        return self.asked[-1][1]

    def largest(self) -> int:
        """Bytes that went at once, at most."""
        brought = [len(matter.content) for matter, _ in self.asked if isinstance(matter, Piece) and matter.content]
        fetched = [sum(map(len, answer)) for _, answer in self.asked if isinstance(answer, list)]
        return max(brought + fetched, default=0)


@pytest.fixture
def desk(tmp_path, monkeypatch) -> AtOnce:
    monkeypatch.setattr(courier_module, "PIECE", TEN)
    monkeypatch.setattr(courier_module, "ray", SimpleNamespace(get=lambda answer: answer))
    return AtOnce(tmp_path / "run")


def written(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


CONTENTS = {f"saes/one/{n}": bytes(range(n)) for n in (0, 1, 9, 10, 11, 20, 25)}


def test_files_of_any_size_are_brought_piece_by_piece(desk, tmp_path):
    Courier(written(tmp_path / "node", CONTENTS), desk).bring()
    assert files(tmp_path / "run") == files(tmp_path / "node") != {}
    assert desk.largest() == TEN


def test_what_the_run_has_of_a_cell_is_fetched_and_only_what_is_new_is_brought(desk, tmp_path):
    mine = CONTENTS | {"checkpoints/cell/3/state": b"state", "logs/cell.log": b"said", "records/one.task.json": b"{}"}
    others = {"saes/other/weights": b"w", "checkpoints/another/3/state": b"s", "run.json": b"{}"}
    written(tmp_path / "run", mine | others | {"saes/one/.weights.7.sae-bench.tmp": b"half"})
    courier = Courier(tmp_path / "node", desk)
    courier.fetch("cell", ["one"])
    assert files(tmp_path / "node") == files(written(tmp_path / "expected", mine))
    assert desk.largest() == TEN
    desk.asked.clear()
    written(tmp_path / "node", {"saes/one/new": b"new"})
    (tmp_path / "node" / "saes/one/25").unlink()
    courier.bring()
    assert [(piece.path, piece.content) for piece, _ in desk.asked] == [("saes/one/new", b"new"), ("saes/one/25", None)]
    assert not (tmp_path / "run" / "saes/one/25").exists()
    courier.bring()
    assert len(desk.asked) == 2


def test_a_file_that_is_cut_short_while_it_is_brought_ends_there(desk, tmp_path, monkeypatch):
    size = 100_000  # more than is read ahead
    monkeypatch.setattr(courier_module, "PIECE", size)
    place = written(tmp_path / "node", {"file": bytes(3 * size)}) / "file"
    pieces = _pieces(tmp_path / "node", "file")
    first = next(pieces)
    place.write_bytes(bytes(size + size // 2))
    rest = list(islice(pieces, 5))
    assert sum(len(piece.content) for piece in (first, *rest)) == size + size // 2
    assert [piece.last for piece in (first, *rest)] == [False, False, True]


@given(st.dictionaries(st.text("ab", min_size=1, max_size=4), st.integers(0, 45)))
def test_parts_fill_the_pieces_and_cover_every_byte_once(sizes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(courier_module, "PIECE", TEN)
        found = [*_together(sizes)]
    amounts = [sum(part.n for part in parts) for parts in found]
    assert all(amount == TEN for amount in amounts[:-1])
    assert sum(amounts) == sum(sizes.values())
    ends = dict.fromkeys(sizes, 0)
    for part in (part for parts in found for part in parts):
        assert (part.start, part.n > 0) == (ends[part.path], True)
        ends[part.path] += part.n
    assert ends == sizes


def test_a_file_takes_its_place_with_its_last_piece(desk, tmp_path):
    place = written(tmp_path / "run", {"saes/one/weights": b"old"}) / "saes/one/weights"
    desk.bring.remote(Piece("saes/one/weights", b"ne", last=False))
    assert place.read_bytes() == b"old"
    desk.bring.remote(Piece("saes/one/weights", b"w", first=False))
    assert [(path.name, path.read_bytes()) for path in place.parent.iterdir()] == [("weights", b"new")]


def test_a_file_whose_node_was_lost_begins_anew_or_leaves_nothing(desk, tmp_path):
    desk.bring.remote(Piece("saes/one/weights", b"half", last=False))
    desk.bring.remote(Piece("saes/one/weights", b"who", last=False))
    desk.bring.remote(Piece("saes/one/weights", b"le", first=False))
    desk.bring.remote(Piece("saes/two/weights", b"half", last=False))
    assert len([*(tmp_path / "run/saes/two").iterdir()]) == 1
    desk.inbox.close()
    assert files(tmp_path / "run") == {"saes/one/weights": b"whole"}


def test_a_file_that_is_changed_while_it_is_fetched_is_not_taken(desk, tmp_path):
    place = written(tmp_path / "run", {"saes/one/weights": bytes(15)}) / "saes/one/weights"
    answer = desk.inbox._answer

    def changed(matter: object) -> object:
        found = answer(matter)
        if isinstance(matter, FilesOf):
            place.write_bytes(b"shorter")
        return found

    desk.inbox._answer = changed
    with pytest.raises(RuntimeError, match=r"saes/one/weights was changed while it was fetched"):
        Courier(tmp_path / "node", desk).fetch("cell", ["one"])
    place.unlink()
    assert answer((Part("saes/one/weights", 0, 3),)) == [b""]


@pytest.mark.parametrize("name", ["../mine", "{}/mine"])
def test_what_a_cell_brings_or_asks_for_is_in_the_runs_folder(desk, tmp_path, name):
    (tmp_path / "mine").write_bytes(b"mine")
    name = name.format(tmp_path)
    for matter in (Piece(name, b"theirs"), Piece(name, None), (Part(name, 0, 4),)):
        with pytest.raises(UserError, match="lead out of it"):
            desk.bring.remote(matter)
    assert (tmp_path / "mine").read_bytes() == b"mine"
