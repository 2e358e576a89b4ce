"""Changes to files as accidents and strangers make them: of bytes, of a text's words, of JSON's structure."""

import copy
import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_bench.records.files import digest_of

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31, -(2**31), 2**63, 10**30, 0.1, -0.5, 1e-300, 1e308,
    "", " ", "x", "0", "-1", "nan", "all", "../../etc", "/", "\0", "\u202e", "\N{SNOWMAN}" * 40, "a\nb", "x" * 5000,
    [], {}, [[]], [None], [1, "x"], {"": {}}, {"a": [1]},
]  # fmt: skip
"""Values that a reader may not have thought of; all of them may stand in JSON."""
NO_NUMBERS = [float("nan"), float("inf"), float("-inf")]
WORDS = ["", "0", "-1", "1e999", "nan", "inf", "99999999999999999999", "true", "[]", "{}", '"', "'", "\\", "=", "#",
         "\n", "[x]", "a.b", "\0", "\ufeff", "\N{SNOWMAN}", "../..", "null", "<|endoftext|>", ","]  # fmt: skip


def mutate(path: Path, draw: random.Random) -> str:
    """Change a file in one to three ways; what was done, in a few words."""
    content = path.read_bytes()
    ways: list[Callable[[bytes, random.Random], bytes]] = [changed_bytes]
    if path.suffix in (".json", ".jsonl"):
        ways += [changed_structure, changed_structure, changed_words]
    elif path.suffix == ".safetensors":
        ways += [changed_header]
    elif path.suffix in (".toml", ".txt", ".csv"):
        ways += [changed_words, changed_words]
    n, way = draw.choice((1, 1, 1, 2, 3)), draw.choice(ways)
    for _ in range(n):
        content = way(content, draw)
    path.write_bytes(content)
    return f"{path.name}: {way.__name__} {n} times"


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bits turned over; bytes cut out, put in, doubled; an end that is missing, or an empty file."""
    whole, size = bytearray(content), len(content)
    at = draw.randrange(size + 1)
    length = draw.choice((1, 2, 8, 64, 1000))
    what = draw.randrange(8)
    if what <= 1 and size:
        whole[min(at, size - 1)] ^= 1 << draw.randrange(8)
    elif what == 2:
        for _ in range(length):
            if size:
                whole[draw.randrange(size)] = draw.randrange(256)
    elif what == 3:
        del whole[at : at + length]
    elif what == 4:
        whole[at:at] = draw.randbytes(length)
    elif what == 5:
        whole[at : at + length] = draw.choice((b"\0", b"\xff")) * length
    elif what == 6:
        del whole[at:]
    else:
        whole[at:at] = whole[at : at + length]
    return bytes(whole)


def changed_words(content: bytes, draw: random.Random) -> bytes:
    """A word or a number of a text is another; a line is twice there, or not, or elsewhere."""
    text = content.decode("utf-8", "replace")
    if draw.random() < 0.3:
        lines = text.splitlines(keepends=True) or [""]
        at = draw.randrange(len(lines))
        line = lines.pop(at)
        lines[draw.randrange(len(lines) + 1) : 0] = draw.choice(([], [line, line], [line]))
        return "".join(lines).encode()
    words = [*re.finditer(r"[\w.+-]+|\S", text)]
    if not words:
        return draw.choice(WORDS).encode()
    found, other = draw.choice(words), draw.choice([*WORDS, draw.choice(words)[0]])
    return (text[: found.start()] + other + text[found.end() :]).encode()


def changed_structure(content: bytes, draw: random.Random) -> bytes:
    """A value of JSON is another, of another type, or is not there; sealed again, half the time, where it was sealed.

    Of JSON lines it is one line.
    """
    lines = content.splitlines(keepends=True)
    try:
        whole = json.loads(content)
    except ValueError:
        at = draw.randrange(len(lines) or 1)
        try:
            lines[at] = json.dumps(_changed(json.loads(lines[at]), draw)).encode() + b"\n"
        except (ValueError, IndexError):
            return changed_bytes(content, draw)
        return b"".join(lines)
    sealed = isinstance(whole, dict) and "seal" in whole
    if sealed and draw.random() < 0.7:
        del whole["seal"]
        whole = _changed(whole, draw, odd=ODD)
        if isinstance(whole, dict):
            whole["seal"] = digest_of(json.loads(json.dumps(whole)))
    else:
        whole = _changed(whole, draw)
    return json.dumps(whole).encode()


def changed_header(content: bytes, draw: random.Random) -> bytes:
    """The names, types, shapes and places that a file of safetensors claims."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.dumps(_changed(json.loads(content[8 : 8 + length]), draw)).encode()
    except (ValueError, struct.error):
        return changed_bytes(content, draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _changed(value: Any, draw: random.Random, odd: list[Any] | None = None) -> Any:
    """JSON with one place changed."""
    value = copy.deepcopy(value)
    places = _places(value)
    if not places:
        return draw.choice(odd or [*ODD, *NO_NUMBERS])
    # What is near the root is met as often as the many leaves of a long list.
    holder, key = draw.choice(draw.choice([*_by_depth(places).values()]))
    what, other = draw.randrange(8), copy.deepcopy(draw.choice(odd or [*ODD, *NO_NUMBERS]))
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[str(other)] = holder.pop(key)
    elif what == 2:
        other_holder, other_key, _ = draw.choice(places)
        holder[key] = copy.deepcopy(other_holder[other_key])
    elif what == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = draw.choice((-holder[key], holder[key] + 1, holder[key] - 1, 2 * holder[key], 0.5 * holder[key]))
    elif what == 4 and isinstance(holder[key], list):
        holder[key] = draw.choice((holder[key] * 2, holder[key][:-1], [*holder[key], other]))
    else:
        holder[key] = other
    return value


def _places(value: Any, depth: int = 0) -> list[tuple[Any, Any, int]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in below for place in ((value, key, depth), *_places(one, depth + 1))]


def _by_depth(places: list[tuple[Any, Any, int]]) -> dict[int, list[tuple[Any, Any]]]:
    found: dict[int, list[tuple[Any, Any]]] = {}
    for holder, key, depth in places:
        found.setdefault(depth, []).append((holder, key))
    return found
