"""How text, values and tables look in each format.

Names and reasons in records may come from anyone. Each format has one function that makes text of it harmless, and
everything that is not our own constant goes through it: `one_line`, `escape_markdown`, `escape_latex`, `escape_csv`.
"""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from sae_bench.errors import one_line

if TYPE_CHECKING:
    import pandas as pd

Escape = Callable[[str], str]

ARROWS = {"up": " ↑", "down": " ↓", None: ""}
FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # and their full-width forms


CONTROLS = "controls:"
"""What stands above the rows of controls."""

TEXT = ("model", "site", "architecture", "mark", "origin")
"""The columns of a board that hold text."""

DIGITS = 4
"""Places behind the point, at most, of values from 0.13 to 1.25, so that what lies about 1 has them on both sides."""


def with_error(value: float, stderr: float | None) -> str:
    """`0.123 ± 0.056`: the error to two significant digits and the value to as many places, as far as `DIGITS` allows.

    An error below the last place is left out: `64`, not `63.99994 ± 0.000061`. That of 0 has one
    digit.
    """
    if stderr is None or not stderr > 0:
        return f"{value:.4g}"
    if math.isinf(stderr):
        return f"{value:.4g} ± unknown"
    places = max(0, (value != 0) - math.floor(math.log10(stderr)))
    if value:
        places = min(places, max(0, math.floor(DIGITS + 0.1 - math.log10(abs(value)))))
    if not round(stderr, places):
        return f"{value:.{DIGITS}g}" if abs(value) < 10**DIGITS else f"{value:.0f}"
    if places > 8:
        return f"{value:.3g} ± {stderr:.2g}"
    return f"{value:.{places}f} ± {stderr:.{places}f}"


def alignment(header: Sequence[str]) -> list[str]:
    """How the columns of a board are aligned: text to the left, numbers to the right."""
    return ["left" if name in TEXT else "right" for name in header]


def escape_markdown(text: str) -> str:
    """Text as Markdown shows it: no cell ends early, no tag, link, formula or emphasis comes to life.

    Character references mean the same to every dialect, backslashes do not. An underscore inside a word, as names
    have it, is no emphasis anywhere and stays legible.
    """
    special = r"[\\`*{}\[\]<>&|#~$^]|(?<![^\W_])_|_(?![^\W_])"
    return re.sub(special, lambda found: f"&#{ord(found[0])};", one_line(text))


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it. A bracket or asterisk that begins a row would be an argument of the \\\\ before it."""
    special = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}",
        "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    }  # fmt: skip
    return re.sub(r"[\\~^±↑↓<>|\[\]*#$%&_{}]", lambda found: special.get(found[0], "\\" + found[0]), one_line(text))


def escape_csv(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe says that it is text."""
    line = one_line(text)
    with suppress(ValueError):
        float(line)  # a number begins no formula, whatever its sign
        return line
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], style: str, escape: Escape, sides: Sequence[str] | None = None
) -> str:
    """A table as tabulate draws it in one of its styles; `sides`: how columns are aligned."""
    body = [[escape(cell) for cell in row] for row in rows]
    return tabulate(body, [escape(name) for name in header], tablefmt=style, disable_numparse=True, colalign=sides)


def csv_table(table: "pd.DataFrame", **how: Any) -> str:
    """A table as CSV, its text made harmless; `how`: what pandas writes otherwise than by itself."""
    harmless = table.map(lambda cell: escape_csv(cell) if isinstance(cell, str) else cell)
    return str(harmless.to_csv(index=False, lineterminator="\n", **how))
