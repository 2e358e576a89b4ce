"""A kind of file that is read from elsewhere: how a whole one is made, and how commands read it."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Make = Callable[[Path], list[Path]]


class Wrong(Exception):
    """A file was read, and as what it is not."""


@dataclass(frozen=True)
class Target:
    """`make(folder)` writes whole files and says which of them are to be changed; `read(folder)` reads all.

    `tries` is how many changed ones are read for the table: fewer of those that take long.
    """

    make: Make
    read: Callable[[Path], object]
    tries: int = 1000


def command(*arguments: object) -> None:
    """Issue a command in this process; what it refuses in a line is raised as that line."""
    from sae_bench.cli.main import main
    from sae_bench.errors import UserError

    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            if "Traceback" in said.getvalue():
                raise Wrong(said.getvalue()) from None
            if exit_.code == 2:
                raise UserError(said.getvalue()) from None


def each(*calls: Callable[[], object]) -> None:
    """Call all, and then raise what the first refused that refused anything."""
    from sae_bench.errors import UserError

    problems = []
    for call in calls:
        try:
            call()
        except UserError as error:
            problems.append(error)
    if problems:
        raise problems[0]
