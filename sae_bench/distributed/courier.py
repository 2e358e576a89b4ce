"""Files between the run's folder and nodes that do not see it: each end of the way to the desk.

A cell fetches what the run's folder has of it when it begins, and brings what it writes as soon as it is written.
"""

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from sae_bench.distributed.desk import PIECE, FilesOf, Matter, Part, Piece, Report
from sae_bench.records.files import inside, is_temporary, replacing
from sae_bench.records.run_folder import SAE_DESCRIPTION, RunFolder
from sae_bench.training.checkpoint import MANIFEST

TAKE_S = 5.0
"""Seconds after which the driver looks up from the desk, whatever else comes."""


class Courier:
    """A node's end, with a folder of its own."""

    def __init__(self, folder: Path, desk: Any) -> None:
        self._folder, self._desk = folder, desk
        self._brought: dict[str, int] = {}  # when each file was written that the driver has

    def fetch(self, cell: str, saes: Sequence[str]) -> None:
        """Put what the run's folder has of a cell and its SAEs into this one.

        Raises:
            RuntimeError: a file was changed meanwhile.
        """
        sizes = self._ask(FilesOf(cell, tuple(saes)))
        for path in sizes:
            inside(self._folder, path).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / path).touch()
        for parts in _together(sizes):
            for part, content in zip(parts, self._ask(parts), strict=True):
                if len(content) < part.n:
                    raise RuntimeError(f"{part.path} was changed while it was fetched")
                with (self._folder / part.path).open("ab") as file:
                    file.write(content)
        self._brought = self._there()

    def bring(self) -> None:
        """Bring what is new, in the order in which it was written; return when the driver has all of it."""
        there = self._there()
        new = [path for path, written in there.items() if self._brought.get(path) != written]
        for path in sorted(new, key=lambda path: (there[path], Path(path).name in (MANIFEST, SAE_DESCRIPTION))):
            for piece in _pieces(self._folder, path):
                self._ask(piece)
        for path in self._brought.keys() - there.keys():
            self._ask(Piece(path, None))
        self._brought = there

    def _there(self) -> dict[str, int]:
        return {
            str(path.relative_to(self._folder)): path.stat().st_mtime_ns
            for path in self._folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }

    def _ask(self, matter: Matter) -> Any:
        return ray.get(self._desk.bring.remote(matter))


def _pieces(folder: Path, path: str) -> Iterator[Piece]:
    """A file as it is now, whatever is added to it meanwhile; where it is cut short, as far as it goes."""
    with (folder / path).open("rb") as file:
        left, first = os.fstat(file.fileno()).st_size, True
        while first or left:
            content = file.read(min(left, PIECE))
            left = left - len(content) if content else 0
            yield Piece(path, content, first, last=not left)
            first = False


def _together(sizes: Mapping[str, int]) -> Iterator[tuple[Part, ...]]:
    """All parts of some files, as many at a time as make a piece."""
    parts, room = list[Part](), PIECE
    for path, size in sizes.items():
        start = 0
        while start < size:
            part = Part(path, start, min(size - start, room))
            parts.append(part)
            start, room = start + part.n, room - part.n
            if not room:
                yield tuple(parts)
                parts, room = [], PIECE
    if parts:
        yield tuple(parts)


class Inbox:
    """The driver's end, at the run's folder."""

    def __init__(self, folder: RunFolder, desk: Any) -> None:
        self._folder, self._desk = folder, desk
        self._answers: dict[int, Any] = {}
        self._begun: dict[str, Generator[None, Piece, None]] = {}  # files of which more is to come, by path

    def take(self) -> Mapping[str, Report]:
        """See to what cells bring and ask for, for as long as more comes, and return their reports."""
        began = time.monotonic()
        while True:
            reports, matters = ray.get(self._desk.come_by.remote(self._answers))
            self._answers = {number: self._answer(matter) for number, matter in matters.items()}
            if not matters or time.monotonic() - began > TAKE_S:
                return dict(reports)

    def close(self) -> None:
        """Leave no file that was begun."""
        for writing in self._begun.values():
            writing.close()

    def _answer(self, matter: Matter) -> Any:
        match matter:
            case Piece():
                self._write(matter)
                return None
            case FilesOf():
                return {
                    str(path.relative_to(self._folder.path)): path.stat().st_size for path in self._files_of(matter)
                }
            case _:
                return [self._read(part) for part in matter]

    def _write(self, piece: Piece) -> None:
        path = inside(self._folder.path, piece.path)
        if piece.content is None:
            path.unlink(missing_ok=True)
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
            return
        if piece.first:
            if left := self._begun.pop(piece.path, None):
                left.close()  # whoever began it was lost
            self._begun[piece.path] = _writing(path)
            next(self._begun[piece.path])
        writing = self._begun[piece.path]
        try:
            writing.send(piece)
        except StopIteration:
            del self._begun[piece.path]

    def _read(self, part: Part) -> bytes:
        path = inside(self._folder.path, part.path)
        if not path.is_file():
            return b""  # who asked for it says what became of it
        with path.open("rb") as file:
            file.seek(part.start)
            return file.read(part.n)

    def _files_of(self, asked: FilesOf) -> list[Path]:
        folder = self._folder
        own = folder.checkpoints_path / asked.cell
        begun = [own] if own.is_dir() else [path for path in folder.checkpoints_path.glob("*") if path.name.isdigit()]
        paths = [folder.path / "logs" / f"{asked.cell}.log", *begun]
        for sae in asked.saes:
            paths += [folder.sae_path(sae), folder.latents_path(sae), folder.collection_path(sae)]
            paths += folder.record_paths(sae)
        files = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
        return [file for file in files if file.is_file() and not is_temporary(file.name)]


def _writing(path: Path) -> Generator[None, Piece, None]:
    """Write a file of the pieces that are sent; closed before the last, it is as if it had never been begun."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        while True:
            piece = yield
            file.write(piece.content or b"")
            if piece.last:
                return
