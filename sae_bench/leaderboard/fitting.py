"""How a table is made to fit a width: names are broken, and columns go into several tables, or wait to be asked for.

Widths are in letters; a cell of several lines is as wide as its longest.
"""

import re
from collections.abc import Sequence

BEHIND = "_:,/"
"""What a name is rather broken behind than anywhere else."""

SHORTEST = 16
"""A cell of as many letters is never broken."""


def _pieces(text: str) -> list[str]:
    return re.findall(rf"[^{BEHIND}]*[{BEHIND}]+|[^{BEHIND}]+", text)


def broken(text: str, width: int) -> str:
    """The text on lines of at most `width` letters."""
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1]) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(lines)


def width_of(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def laid_out(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int, gap: int
) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, rows and the columns' widths: no cell takes over a third of `width`.

    Where that is not enough, names of columns are broken so that they take no more room than what stands below.
    """
    longest = max(SHORTEST, width // 3)
    body = [[cell if len(cell) <= longest else broken(cell, longest) for cell in row] for row in rows]
    of_body = [max([0, *(width_of(row[i]) for row in body)]) for i in range(len(header))]
    plain = [max(len(name), of) for name, of in zip(header, of_body, strict=True)]
    if sum(plain) + gap * (len(plain) - 1) <= width:
        return [*header], body, plain
    names, widths = [], []
    for i, name in enumerate(header):
        least = min(longest, max(map(len, _pieces(name))))
        widths.append(max(least, of_body[i]))
        names.append(broken(name, widths[-1]))
    return names, body, widths


def bands(widths: Sequence[int], n_keys: int, width: int, gap: int) -> list[list[int]]:
    """The columns of each of the tables that all of them take; the first `n_keys` stand in every one."""
    of_keys = sum(widths[:n_keys]) + gap * (n_keys - 1)
    found: list[list[int]] = []
    used = width
    for i in range(n_keys, len(widths)):
        if not found or used + gap + widths[i] > width:
            found.append([])
            used = of_keys
        found[-1].append(i)
        used += gap + widths[i]
    return [[*range(n_keys), *band] for band in found or [[]]]


def foremost(order: Sequence[int], widths: Sequence[int], n_keys: int, width: int, gap: int) -> list[int]:
    """The columns of one table that fits: the keys, and as many of the others, the first of `order`, as have room."""
    left = width - sum(widths[:n_keys]) - gap * (n_keys - 1)
    kept: list[int] = []
    for i in order:
        if not kept or gap + widths[i] <= left:
            kept.append(i)
            left -= gap + widths[i]
    return [*range(n_keys), *sorted(kept)]
