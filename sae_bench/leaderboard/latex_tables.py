r"""Tables for papers: floats that are no wider and no longer than a page, each with a caption and a label.

They need the packages booktabs and graphicx. Columns that a page has no room for go into a table of their own, under
the same names, and rows that are too many into the next; what is then a little too wide is scaled down to the line.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice

from sae_bench.errors import one_line
from sae_bench.leaderboard.fitting import bands, laid_out
from sae_bench.leaderboard.render import CONTROLS, alignment, escape_latex

WIDTH = 92
r"""Letters that a line of a table may have: a column of 345 pt shows them at about three quarters of \small."""
GAP = 3
N_LINES = 40
"""Lines of a table, its header and its caption apart, that a page has room for."""


class Bold(str):
    """A cell that is set in bold."""


def latex_tables(
    parts: Mapping[str, Sequence[Sequence[str]]],
    header: Sequence[str],
    n_keys: int,
    caption: str,
    label: str,
    facts: str,
) -> str:
    """The tables; nothing has made text harmless yet.

    `parts` are rows by what stands above them; the first `n_keys` columns stand in every table; `facts` is all that is
    to be known, and becomes a comment.
    """
    names, body, widths = laid_out(header, [row for rows in parts.values() for row in rows], WIDTH, GAP)
    rest = iter(body)
    of_part = {title: list(islice(rest, len(rows))) for title, rows in parts.items()}
    drawn = []
    for band in bands(widths, n_keys, WIDTH, GAP):
        whole = [line for title, rows in of_part.items() for line in _part(title, rows, band)]
        drawn += [(band, _apart(whole[start : start + N_LINES])) for start in range(0, len(whole), N_LINES)]
    found = [f"% {one_line(facts)}\n"]
    for i, (band, lines) in enumerate(drawn):
        of = f" (Table {i + 1} of {len(drawn)}.)" if len(drawn) > 1 else ""
        name = f"tab:{_plain(label)}" + (f"-{i + 1}" if i else "")
        sides = "".join(side[0] for side in alignment([header[j] for j in band]))
        found.append(
            table_float(sides, _lines([names[j] for j in band], above=True), lines, escape_latex(caption + of), name)
        )
    return "\n".join(found)


def table_float(sides: str, header: Sequence[str], lines: Sequence[str], caption: str, label: str) -> str:
    """One float, of lines and a caption in which text is harmless already."""
    return "\n".join(
        [r"\begin{table}", r"\centering", r"\small", rf"\caption{{{caption}}}", rf"\label{{{label}}}",
         r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", rf"\begin{{tabular}}{{{sides}}}",
         r"\toprule", *header, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
    )  # fmt: skip


def _part(title: str, rows: Sequence[Sequence[str]], band: Sequence[int]) -> list[str]:
    """Lines of the rows, below their title, and rules where another group begins."""
    lines = [r"\midrule", _across(title, len(band))] if title else []
    for row in rows:
        lines += [r"\midrule", _across(row[0], len(band))] if row[0] == CONTROLS else _lines([row[j] for j in band])
    return lines


def _apart(lines: Sequence[str]) -> Sequence[str]:
    """Without a rule that follows that of the header."""
    return lines[1:] if lines and lines[0] == r"\midrule" else lines


def _across(text: str, n_columns: int) -> str:
    return rf"\multicolumn{{{n_columns}}}{{l}}{{\emph{{{escape_latex(text)}}}}} \\"


def _lines(cells: Sequence[str], *, above: bool = False) -> list[str]:
    """A row on as many lines as its longest cell takes; `above`: shorter ones have empty lines above them."""
    broken = [[type(cell)(line) for line in cell.split("\n")] for cell in cells]
    n_lines = max(map(len, broken))
    empty = [[""] * (n_lines - len(lines)) for lines in broken]
    padded = [no + of if above else of + no for no, of in zip(empty, broken, strict=True)]
    return [" & ".join(map(_cell, line)) + r" \\" for line in zip(*padded, strict=True)]


def _cell(text: str) -> str:
    return rf"\textbf{{{escape_latex(text)}}}" if isinstance(text, Bold) else escape_latex(text)


def _plain(label: str) -> str:
    """A label that any package takes."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
