"""How deeply a file of JSON is nested, found out before a parser that ends the process on it is asked."""

import bz2
import gzip
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from sae_bench.errors import UserError

DEEPEST = 200
"""Objects and lists in one another. Arrow reads some thousands, and then ends the process."""

_OPEN: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def check_nesting(file: Path) -> None:
    """See that no line of a file nests deeper than people do; only lines with many brackets are looked into.

    Raises:
        UserError: one does.
    """
    try:
        with _OPEN.get(file.suffix, open)(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.count(b"{") + line.count(b"[") > DEEPEST and _depth(line) > DEEPEST:
                    raise UserError(
                        f'"{file}", line {number}: objects and lists more than {DEEPEST} deep in one another: '
                        "leave the line out, or write its text into a column of its own"
                    )
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f'"{file}" cannot be read ({error}): get it again') from None


def _depth(line: bytes) -> int:
    """How deep a line goes; brackets in texts count none."""
    deepest = depth = 0
    for bracket in re.findall(rb"[\[\]{}]", _TEXT.sub(b"", line)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
