"""One line of a table of the comparison, and of its progress."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from common import table


@dataclass(frozen=True)
class Row:
    """One line of the table, and whether its bound holds."""

    what: str
    cells: tuple[str, ...]
    holds: bool


def as_table(rows: Sequence[Row], headers: Sequence[str]) -> str:
    """A Markdown table of rows, which says last whether each holds."""
    cells = [[row.what, *row.cells, "yes" if row.holds else "NO"] for row in rows]
    return table(cells, ["", *headers, "holds"])


def say(what: str) -> None:
    """Progress, as it happens."""
    print(what, file=sys.stderr, flush=True)
