"""Names: of the folder for what can be made again, of models as people know them, of text as one part of a path."""

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

TRUE_NAMES = {"demo": "Gemma 3 270M"}
"""What models of a short name are that no model hub knows by it."""


def true_name(model: str) -> str:
    """A model of a record as people know it: "Gemma 3 270M (demo)"."""
    short = model.partition(" ")[0]
    return f"{TRUE_NAMES[short]} ({model})" if short in TRUE_NAMES else model


@lru_cache(maxsize=10_000)
def natural_order(text: str) -> tuple[str | int, ...]:
    """What to sort names by, so that layer_2 stands before layer_10."""
    return tuple(int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]{1,18})", text)))


def cache_folder() -> Path:
    """Return the cache folder, which need not exist yet.

    `$SAE_BENCH_CACHE` wins; otherwise `sae-arch-bench` below `$XDG_CACHE_HOME`, which defaults to `~/.cache`.
    An empty variable counts as unset, as the XDG specification asks.
    """
    if own := os.environ.get("SAE_BENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-arch-bench"


def file_name(text: str, longest: int = 160) -> str:
    """Text as one part of a path: ASCII letters, digits and `_.+-`, beginning with no dot or dash, and not too long.

    A text that has to be cut ends in a hash of the whole, so that two that differ stay apart. File systems allow 255
    bytes; the rest is for what is put around a name: a task's of up to 64, suffixes, a temporary file's.
    """
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).lstrip(".-") or "_"
    if len(name) <= longest:
        return name
    return f"{name[: longest - 13]}.{hashlib.sha256(text.encode()).hexdigest()[:12]}"
