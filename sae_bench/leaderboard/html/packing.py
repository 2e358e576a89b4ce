"""The report's data as a page holds it: rows as columns, JSON, compressed, and in base64.

Thousands of SAEs repeat the names of their fields and most of their settings; a column says its name once, and one
whose values are all alike says its value once. `unpacked` in the page's script is the other half.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

LEVEL = 6


def packed(content: Any) -> str:
    """JSON, compressed as zlib has it, in letters that mean nothing to HTML."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return base64.b64encode(zlib.compress(text.encode(), LEVEL)).decode()


def columns(rows: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Rows as columns by name, those of parts of rows within; what a row has not is null, as what it has as None.

    {"n": 3, "all": {"seed": 0}, "of": {"id": ["a", "b", "c"]}, "parts": {"scores": {"n": 3, ...}}, "none": [1]}
    """
    names = dict.fromkeys(name for row in rows if row is not None for name in row)
    found: dict[str, Any] = {"n": len(rows), "all": {}, "of": {}, "parts": {}}
    found["none"] = [i for i, row in enumerate(rows) if row is None]
    for name in names:
        values = [None if row is None else row.get(name) for row in rows]
        if all(isinstance(value, Mapping | None) for value in values) and any(values):
            found["parts"][name] = columns(values)
        elif all(type(value) is type(values[0]) and value == values[0] for value in values):
            found["all"][name] = values[0]
        else:
            found["of"][name] = values
    return found
