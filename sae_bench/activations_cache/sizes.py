"""What a cache takes of the disk, and whether there is room for it."""

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_bench.errors import UserError
from sae_bench.lm.sites import Site
from sae_bench.records.names import file_name

SPARE_BYTES = 256 << 20
"""Left free on the disk, for a run's own files."""

BESIDE = 8
"""Bytes of each token and site besides its activation: the token, and the document that it is from."""

OVERHEAD = 1.01
"""For headers, descriptions, and the pass in which a stream ended before it was made longer."""


@dataclass(frozen=True)
class Need:
    """What a run's activations take: bytes by site, at most, and by what of the run it is that many."""

    by_site: Mapping[Site, int]
    tokens: int
    """Captured to train on."""
    held_out: int
    context_size: int

    @staticmethod
    def of(
        trained: set[Site], evaluated: set[Site], dtype: torch.dtype, tokens: int, held_out: int, context_size: int
    ) -> "Need":
        """That of some sites in the language model's dtype: whole contexts, whose first position is kept, too."""

        def n_bytes(site: Site) -> int:
            contexts = sum(
                math.ceil(n / (context_size - 1))
                for n, sites in ((tokens, trained), (held_out, evaluated))
                if site in sites
            )
            return math.ceil(OVERHEAD * contexts * context_size * (site.d_in * dtype.itemsize + BESIDE))

        return Need({site: n_bytes(site) for site in trained | evaluated}, tokens, held_out, context_size)

    @property
    def total(self) -> int:
        return sum(self.by_site.values())

    def check(self, root: Path, folder: Path | None, limit: int | None) -> None:
        """See that there is room, in `limit` and on the disk, for what `folder` does not hold of it yet.

        Raises:
            UserError: there is not; it says what would fit.
        """
        there = (
            sum(min(n, bytes_in(folder / file_name(site.name))) for site, n in self.by_site.items()) if folder else 0
        )
        missing, used = self.total - there, bytes_in(root)
        above = next(path for path in (root, *root.parents) if path.exists())
        if missing and not os.access(above, os.W_OK):
            raise UserError(f"--activations-cache {root} cannot be written: choose another folder")
        holds = f", and {root} holds {in_words(used)}, of it {in_words(there)} of these" if used else ""
        about = f"this run's activations take {in_words(self.total)}{holds}"
        if limit is not None and used + missing > limit:
            raise UserError(
                f"--cache-limit {in_words(limit)}: {about}; {self._fitting(limit - used + there)}, raise it to "
                f"{in_words(used + missing, up=True)}, or choose another --activations-cache"
            )
        free = shutil.disk_usage(above).free - SPARE_BYTES
        if missing > free:
            raise UserError(
                f"--activations-cache {root}: {about}, and {in_words(max(free, 0))} can be had of its disk; "
                f"{self._fitting(free + there)}, make room, or choose another folder"
            )

    def _fitting(self, n_bytes: int) -> str:
        """How many tokens would fit, beside the same held-out ones."""
        n_contexts = math.ceil(self.tokens / (self.context_size - 1)) + math.ceil(
            self.held_out / (self.context_size - 1)
        )
        fit = int(n_bytes / (self.total / n_contexts)) - math.ceil(self.held_out / (self.context_size - 1))
        return f"--tokens {fit * (self.context_size - 1)} would fit" if fit > 0 else "not even one context would fit"


def bytes_in(folder: Path) -> int:
    """Of all files below it; one that goes meanwhile counts none."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def in_words(n_bytes: int, *, up: bool = False) -> str:
    """Bytes for people, as --cache-limit reads them; `up`: not less than they are."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if n_bytes >= size:
            return f"{(math.ceil if up else round)(100 * n_bytes / size) / 100:g}{unit}"
    return f"{math.ceil(n_bytes / 1000) if up else round(n_bytes / 1000)}kB"
