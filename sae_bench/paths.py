"""Where the harness keeps what it can make again: the extracted corpus, the converted demo model."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the cache folder, which need not exist yet.

    `$SAE_BENCH_CACHE` wins; otherwise `sae-arch-bench` below `$XDG_CACHE_HOME`, which defaults to `~/.cache`.
    An empty variable counts as unset, as the XDG specification asks.
    """
    if own := os.environ.get("SAE_BENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-arch-bench"
