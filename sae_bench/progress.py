"""Progress for people and for logs: rich bars with the time left on a terminal, plain lines anywhere else."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
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

    def _bar(self, stage: str, items: Iterable[T], total: int, size: Callable[[T], int]) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Bars(*columns, console=Console(stderr=True)) as bars:
            bar = bars.add_task(stage, total=total, note="")
            for item in items:
                yield item
                bars.update(bar, advance=size(item), note=self.note)

    def _lines(self, stage: str, items: Iterable[T], total: int, size: Callable[[T], int]) -> Iterator[T]:
        start = last = time.monotonic()
        done = 0
        for item in items:
            yield item
            done += size(item)
            now = time.monotonic()
            if now - last > LINE_EVERY_S and done < total:
                eta = (now - start) * (total - done) / done
                self.say(f"{stage}: {done:,}/{total:,}, {now - start:.0f} s, eta {eta:.0f} s  {self.note}".rstrip())
                last = now
        seconds = time.monotonic() - start
        if seconds > 1:
            self.say(f"{stage}: {done:,} in {seconds:.0f} s  {self.note}".rstrip())
