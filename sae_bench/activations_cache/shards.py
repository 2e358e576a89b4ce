"""A shard of a cache: what some passes captured at one site, in a file that is whole or not there.

    000007.safetensors      x [n S D] as captured, tokens [n S], document [n S]
    000007.json             sealed: the shard's checksum, its capture and site, its passes; written last

A pass is the tokens that the language model was given at once. Their number decides how products are rounded, and so a
pass is known by its tokens and by how many contexts ran in it.

Shapes: n contexts, S tokens in each, D width of the site.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_bench.errors import UserError
from sae_bench.lm.sites import Site
from sae_bench.records.files import Damaged, read_sealed, replacing, sha256, write_sealed


class ForeignError(Exception):
    """A shard is of another capture than the folder that it lies in."""


@dataclass(frozen=True)
class Pass:
    """A pass that is in a shard."""

    opening: str
    """`digest` of its first context's tokens: what it is looked up by."""
    tokens: str
    """`digest` of all its tokens."""
    n: int
    """Contexts that are kept."""
    of: int
    """Contexts that ran at once; more than are kept where a stream ended."""


_PASS = TypeAdapter(Pass)


@dataclass(frozen=True)
class Shard:
    """What a shard's description says."""

    path: Path
    """Of the tensors."""
    site: Site
    passes: tuple[Pass, ...]
    sha256: str


@dataclass(frozen=True)
class Captured:
    """What a pass captured at a site, on the CPU."""

    what: Pass
    tokens: Int[Tensor, "n S"]
    document: Int[Tensor, "n S"]
    x: Float[Tensor, "n S D"]


def digest(tokens: Int[Tensor, "*n S"]) -> str:
    """SHA-256 (hex) of some tokens, as little-endian int64."""
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()


def description_path(shard: Path) -> Path:
    """Where a shard is described."""
    return shard.with_suffix(".json")


def write_shard(path: Path, capture: str, site: Site, captured: Sequence[Captured]) -> Shard:
    """Write what some passes captured at a site; `capture` is what the folder calls itself.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    tensors = {
        "x": torch.cat([one.x for one in captured]),
        "tokens": torch.cat([one.tokens for one in captured]).int(),
        "document": torch.cat([one.document for one in captured]).int(),
    }
    with replacing(path) as file:
        save_file(tensors, file)
        checksum = sha256(file)
    shard = Shard(path, site, tuple(one.what for one in captured), checksum)
    about = {"capture": capture, "site": asdict(site), "sha256": checksum}
    write_sealed(description_path(path), about | {"passes": [asdict(one) for one in shard.passes]})
    return shard


def read_description(description: Path, capture: str) -> Shard:
    """What a shard says that it holds.

    Raises:
        Damaged: its description is not what was written.
        ForeignError: it is of another capture.
    """
    content: dict[str, Any] = read_sealed(description)
    if content["capture"] != capture:
        raise ForeignError
    passes = tuple(map(_PASS.validate_python, content["passes"]))
    return Shard(description.with_suffix(".safetensors"), Site(**content["site"]), passes, content["sha256"])


class ShardReader:
    """The tensors of a shard, whose bytes were held against its checksum; they stay on the disk until asked for.

    Raises:
        Damaged: the file is missing, or not what was written.
    """

    def __init__(self, shard: Shard) -> None:
        try:
            if sha256(shard.path) != shard.sha256:
                raise Damaged(f"{shard.path} is not what was written (its checksum differs)")
            self._file = safe_open(shard.path, "pt")
        except (OSError, SafetensorError) as error:
            raise Damaged(f"{shard.path} cannot be read ({error})") from None

    def tokens(self, first: int, n: int) -> Int[Tensor, "n S"]:
        """The tokens of `n` contexts from number `first` on."""
        return self._part("tokens", first, n).long()

    def activations(self, first: int, n: int) -> Float[Tensor, "n S D"]:
        """The activations of these contexts, in the dtype in which they were captured."""
        return self._part("x", first, n)

    def _part(self, name: str, first: int, n: int) -> Tensor:
        try:
            part: Tensor = self._file.get_slice(name)[first : first + n]  # type: ignore[no-untyped-call]
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"a shard cannot be read any more ({error}): mend the disk of --activations-cache"
            ) from None
        return part
