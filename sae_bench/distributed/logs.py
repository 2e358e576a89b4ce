"""What a process says, kept in the run's folder as well: without secrets, and with the time."""

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_bench.progress import Progress
from sae_bench.records.redact import install_redaction, redact


class _Handler(logging.FileHandler):
    """Makes its folder when there is something to say."""

    def _open(self) -> io.TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


@contextmanager
def logged(path: Path) -> Iterator[Callable[[str], None]]:
    """Within this block whatever is logged goes to a file, too; yield what writes a line of news there."""
    install_redaction()
    handler = _Handler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)

    def say(text: str) -> None:
        handler.handle(logging.makeLogRecord({"msg": redact(text), "levelno": logging.INFO}))

    try:
        yield say
    finally:
        root.removeHandler(handler)
        handler.close()


class KeptProgress(Progress):
    """Shows what `shown` shows, and keeps all news."""

    def __init__(self, shown: Progress, keep: Callable[[str], None]) -> None:
        super().__init__(shown.quiet)
        self._keep = keep

    def say(self, text: str) -> None:
        self._keep(text)
        super().say(text)
