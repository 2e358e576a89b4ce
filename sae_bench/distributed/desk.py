"""The desk: where cells say how far they are, and hand in files where they see no folder of the driver's.

It is an actor of Ray's. The driver comes by, reads the reports, takes the files and writes them; who handed one in
waits until it is written, so that no more than one file of each cell is under way.
"""

import asyncio
from dataclasses import dataclass
from itertools import count

NEXT_S = 0.02
"""Seconds in which who has handed in a file may bring the next."""


@dataclass(frozen=True)
class Report:
    """How far a cell is: `done` of `total` in a stage."""

    stage: str
    done: int = 0
    total: int = 0
    note: str = ""


@dataclass(frozen=True)
class HandedIn:
    """A file of the run's folder, by its path in it; without content it is to be deleted."""

    path: str
    content: bytes | None


class Desk:
    """All methods run in one event loop."""

    def __init__(self) -> None:
        self._reports: dict[str, Report] = {}
        self._numbers = count()
        self._waiting: dict[int, tuple[HandedIn, asyncio.Event]] = {}

    async def report(self, cell: str, report: Report) -> None:
        self._reports[cell] = report

    async def hand_in(self, file: HandedIn) -> None:
        """Return when the driver has written it."""
        written = asyncio.Event()
        self._waiting[next(self._numbers)] = file, written
        await written.wait()

    async def come_by(self, written: list[int]) -> tuple[dict[str, Report], dict[int, HandedIn]]:
        """The driver has written some files: what else is there to write, by number, and how far is each cell."""
        for number in written:
            _, event = self._waiting.pop(number)
            event.set()
        if written:
            await asyncio.sleep(NEXT_S)
        return self._reports, {number: file for number, (file, _) in self._waiting.items()}
