"""Tables in a terminal: as wide as it is, with the columns that matter most, and word of those that find no room.

SAEs of several models, sites or widths stand in a table for each.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import SEPARATING_LINE, tabulate

from sae_bench.errors import one_line
from sae_bench.leaderboard import fitting
from sae_bench.leaderboard.render import CONTROLS, alignment

GAP = 2
MOST = 100
"""Letters of a line of prose, however wide the terminal is."""

Rows = Sequence[Sequence[str]]


def terminal_width() -> int | None:
    """The terminal's width, in letters; None where the output is no terminal's, and COLUMNS does not say otherwise."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return None


def text_tables(
    parts: Mapping[str, Rows], header: Sequence[str], n_keys: int, wide: int | None, order: Sequence[int] | None
) -> tuple[str, list[str]]:
    """Tables as text, and the names of the columns that they have no room for.

    `parts` are rows by what stands above them. `order` says which columns matter most, the first `n_keys` apart, which
    stand in every table; without it none is left out, and those that find no room are in tables below.
    """
    room = wide or sys.maxsize // 4
    names, body, widths = fitting.laid_out(
        [one_line(name) for name in header],
        [[one_line(cell) for cell in row] for rows in parts.values() for row in rows],
        room,
        GAP,
    )
    if order is None:
        bands = fitting.bands(widths, n_keys, room, GAP)
    else:
        bands = [fitting.foremost(order, widths, n_keys, room, GAP)]
    drawn, rest = [], iter(body)
    for title, rows in parts.items():
        of_part = [next(rest) for _ in rows]
        drawn += [prose(title, wide)] if title else []
        drawn += [_drawn(names, of_part, alignment(header), band) for band in bands]
    shown = {i for band in bands for i in band}
    return "\n\n".join(drawn), [name for i, name in enumerate(header) if i not in shown]


def _drawn(names: Sequence[str], rows: Rows, sides: Sequence[str], band: Sequence[int]) -> str:
    lines: list[Any] = [[names[i] for i in band], SEPARATING_LINE]
    for row in rows:
        lines += [SEPARATING_LINE] if row[0] == CONTROLS else []
        lines.append([row[i] for i in band])
    drawn = tabulate(lines, tablefmt="simple", disable_numparse=True, colalign=[sides[i] for i in band])
    return "\n".join(str(drawn).split("\n")[1:-1])  # without rules above and below


def prose(text: str, wide: int | None) -> str:
    """Text on lines that fit."""
    return textwrap.fill(one_line(text), min(wide or MOST, MOST), break_long_words=False, break_on_hyphens=False)
