"""SIGINT and SIGTERM: stop between steps, never within one.

Preemptible machines say SIGTERM and pull the plug half a minute later; people press Ctrl-C. Both become a
KeyboardInterrupt, at once where nothing can be torn, else at the end of the `shielded` block under way. Asked twice,
the block is not waited for.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _State:
    depth = 0
    asked = False


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within this block SIGINT and SIGTERM raise KeyboardInterrupt as told above; only the main thread hears them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _ask) for number in (signal.SIGINT, signal.SIGTERM)}
    _State.asked = False
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ask(_number: int, _frame: FrameType | None) -> None:
    if _State.depth and not _State.asked:
        _State.asked = True
    else:
        raise KeyboardInterrupt


@contextmanager
def shielded() -> Iterator[None]:
    """Finish this block before a signal that arrives in it is heard."""
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
        asked = _State.asked and not _State.depth
        if asked:
            _State.asked = False
    if asked:
        raise KeyboardInterrupt
