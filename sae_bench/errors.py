"""The one exception that stands for a user's mistake, and the "did you mean" that goes with it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user asked for cannot be done.

    The message is one line that names the thing, the value given and the remedy; the command line prints it
    and exits with code 2. Failed assertions stand for our own mistakes and keep their traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Text on one line, without characters that command a terminal or turn the direction of writing."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean "topk"? known: ...)` for an unknown `name`, to end an error message with."""
    options = sorted(known)
    close = difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.5)
    guess = f'did you mean "{close[0]}"? ' if close else ""
    return f" ({guess}known: {', '.join(options) or 'none'})"
