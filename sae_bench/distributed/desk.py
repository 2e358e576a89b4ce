"""The desk: where cells say how far they are, and bring and fetch files where they see no folder of the driver's.

It is an actor of Ray's. The driver comes by, reads the reports, and answers what cells bring or ask for; who did waits
for the answer, and files go in pieces. So of each cell no more than a piece is under way, however large its SAEs are.
"""

import asyncio
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

NEXT_S = 0.02
"""Seconds in which who was answered may come with the next."""

PIECE = 16 << 20
"""Bytes that go at once."""

AT_ONCE = 4
"""Pieces that the driver has in memory at a time, at most."""


@dataclass(frozen=True)
class Report:
    """How far a cell is: `done` of `total` in a stage."""

    stage: str
    done: int = 0
    total: int = 0
    note: str = ""


@dataclass(frozen=True)
class Piece:
    """A piece of a file of the run's folder, by its path in it; without content the file is to be deleted."""

    path: str
    content: bytes | None
    first: bool = True
    last: bool = True


@dataclass(frozen=True)
class FilesOf:
    """Asks which files the run's folder has of some SAEs and of a cell. The answer: their bytes, by path."""

    cell: str
    saes: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Asks for a part of a file: `n` bytes from `start` on."""

    path: str
    start: int
    n: int


Matter = Piece | FilesOf | tuple[Part, ...]
"""What the driver is asked to see to. The answer to parts: the bytes of each."""


class Desk:
    """All methods run in one event loop."""

    def __init__(self) -> None:
        self._reports: dict[str, Report] = {}
        self._numbers = count()
        self._waiting: dict[int, tuple[Matter, asyncio.Future[Any]]] = {}

    async def report(self, cell: str, report: Report) -> None:
        self._reports[cell] = report

    async def bring(self, matter: Matter) -> Any:
        """Return what the driver answers; None says that a piece is written."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting[next(self._numbers)] = matter, answer
        return await answer

    async def come_by(self, answers: dict[int, Any]) -> tuple[dict[str, Report], dict[int, Matter]]:
        """The driver answers some matters: what else is there, by number, oldest first, and how far is each cell."""
        for number, answer in answers.items():
            _, waiting = self._waiting.pop(number)
            if not waiting.done():  # who asked may be gone
                waiting.set_result(answer)
        if answers:
            await asyncio.sleep(NEXT_S)
        return self._reports, {number: matter for number, (matter, _) in islice(self._waiting.items(), AT_ONCE)}
