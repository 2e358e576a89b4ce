"""Progress for people and for logs: rich bars with the time left on a terminal, plain lines anywhere else."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

HUB_TRIES = ("thrown while requesting", "[Retry ")
"""What the hub's client says of every try that fails, with an address or an errno, and twice."""

LINE_EVERY_S = 10.0
"""Seconds between plain lines of one stage; a stage shorter than a second says nothing."""


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep failed tries of the model hub's client off the screen; whoever waits for them is told so once."""
    said = False

    def keep(record: logging.LogRecord) -> bool:
        nonlocal said
        if not any(words in record.getMessage() for words in HUB_TRIES):
            return True
        if not said:
            log.info("the model hub does not answer: trying again for half a minute")
        said = True
        return False

    client = logging.getLogger("huggingface_hub.utils._http")
    client.addFilter(keep)
    try:
        yield
    finally:
        client.removeFilter(keep)


class Progress:
    """Shows stages of known length. `quiet` shows nothing at all.

    `note` may be set while a stage runs: a few words (loss, L0) shown behind its bar.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bars = not quiet and sys.stderr.isatty()
        self.note = ""
        self._moved: Callable[[float], None] = _nothing
        self._to_come: dict[str, float] = {}

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Say which stages come, in their order, and how long each is thought to take: for the time left of all."""
        self._to_come = dict(seconds)

    def _after(self, stage: str) -> float | None:
        """Seconds of the stages that come after this one; None if none is known of."""
        names = [*self._to_come]
        later = names[names.index(stage) + 1 :] if stage in names else names
        return sum(self._to_come[name] for name in later) if later else None

    def within(self, share: float) -> None:
        """Say which share of the item under way is done, where one takes long."""
        self._moved(share)

    def say(self, text: str) -> None:
        """Print one line of news."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def track(self, stage: str, items: Iterable[T], total: int, size: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
        """Yield the items of a stage; `size` says how far each one gets towards `total`."""
        self.note = ""
        if self.quiet:
            yield from items
        elif self.bars:
            yield from self._bar(stage, items, total, size)
        else:
            yield from self._lines(stage, items, total, size)
        self._moved = _nothing
        self._to_come.pop(stage, None)

    def _bar(self, stage: str, items: Iterable[T], total: int, size: Callable[[T], int]) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[run]}"),
            TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Bars(*columns, console=Console(stderr=True)) as bars:
            bar = bars.add_task(stage, total=total, note="", run="")
            start, later, done = time.monotonic(), self._after(stage), 0

            def at(reached: float) -> None:
                left = (time.monotonic() - start) * (total - reached) / reached if reached else 0.0
                run = f"run {duration(left + later)}" if later is not None and reached else ""
                bars.update(bar, completed=reached, note=self.note, run=run)

            for item in items:
                self._moved = _within(at, done, size(item))
                yield item
                done += size(item)
                at(done)

    def _lines(self, stage: str, items: Iterable[T], total: int, size: Callable[[T], int]) -> Iterator[T]:
        start = last = time.monotonic()
        later, done = self._after(stage), 0.0

        def at(reached: float) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > LINE_EVERY_S and 0 < reached < total:
                eta = (now - start) * (total - reached) / reached
                run = "" if later is None else f", run {duration(eta + later)}"
                told = f"{stage}: {reached:,.0f}/{total:,}, {now - start:.0f} s, eta {eta:.0f} s{run}  {self.note}"
                self.say(told.rstrip())
                last = now

        for item in items:
            self._moved = _within(at, done, size(item))
            yield item
            done += size(item)
            at(done)
        seconds = time.monotonic() - start
        if seconds > 1:
            self.say(f"{stage}: {done:,.0f} in {seconds:.0f} s  {self.note}".rstrip())


def duration(seconds: float) -> str:
    """Seconds as people say them: `12.0 s`, `3.5 min`, `2.1 h`."""
    length, unit = (1, "s") if seconds < 100 else (60, "min") if seconds < 6000 else (3600, "h")
    return f"{seconds / length:,.1f} {unit}"


def _within(at: Callable[[float], None], begun: float, size: int) -> Callable[[float], None]:
    """What takes the share of an item that is done, where the stage was at `begun` before it."""
    return lambda share: at(begun + share * size)


def _nothing(share: float) -> None:
    """No item is under way."""
