"""The pairs that a rule keeps, gathered chunk by chunk, and the memory set aside for them where nobody may wait.

Shapes: b tokens of a chunk, F = d_sae.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_bench.saes.layouts import Dense, Layout, Sparse


@dataclass
class Capacity:
    """Memory for the pairs that a mask keeps, set aside where asking the device for their number would stop it.

    A mask that keeps more than its share of all places does not fit: its surplus is lost and `short` says so, and
    whoever set it aside must not use the result. `most` is the largest share that a mask has kept; `screened`, whether
    that was of candidates.
    """

    share: float
    most: Float[Tensor, ""]
    short: Bool[Tensor, ""]
    screened: bool = True

    def allows_screening(self, limit: float) -> bool:
        """Whether so many candidates as there is memory for are within the limit, well within if they are to become so.

        Candidates are more than the pairs that are kept: what is just enough for these would not do for those.
        """
        self.screened = self.share <= (limit if self.screened else limit / 2)
        return self.screened

    @staticmethod
    def whole(device: torch.device) -> "Capacity":
        """Memory for every place."""
        return Capacity(1.0, torch.zeros((), device=device), torch.zeros((), dtype=torch.bool, device=device))

    def note(self, n_kept: Int[Tensor, ""], n_places: int, n_reserved: int) -> None:
        """Take in that a mask kept `n_kept` of the places, with memory for `n_reserved`."""
        self.most = torch.maximum(self.most, n_kept / n_places)
        self.short = self.short | (n_kept > n_reserved)


class Found:
    """What one rule keeps, gathered chunk by chunk; the first chunk decides on the layout."""

    def __init__(self, n_tokens: int, n_latents: int, dense_above: float, capacity: Capacity | None) -> None:
        self.n_tokens, self.n_latents = n_tokens, n_latents
        self.dense_above, self.capacity = dense_above, capacity
        self.dense: tuple[Tensor, Tensor] | None = None
        self.sparse: list[tuple[Tensor, ...]] = []

    def add(self, tokens: slice, z: Float[Tensor, "b F"], kept: Tensor) -> None:
        if tokens.start == 0 and self._share(kept) > self.dense_above:
            shape = (self.n_tokens, self.n_latents)
            self.dense = z.new_empty(shape), torch.empty(shape, dtype=torch.bool, device=z.device)
        if self.dense is None:
            self.sparse.append(self._pairs(tokens, z, kept))
            return
        if kept.dtype != torch.bool:
            kept = torch.zeros_like(z, dtype=torch.bool).scatter_(1, kept, True)
        elif self.capacity is not None:
            self.capacity.note(kept.count_nonzero(), kept.numel(), kept.numel())
        values, mask = self.dense
        mask[tokens] = kept
        values[tokens].copy_(kept).mul_(z)  # three times as fast as a product of two types

    def _share(self, kept: Tensor) -> float:
        if kept.dtype != torch.bool:
            return kept.shape[1] / self.n_latents
        if self.capacity is not None:
            return self.capacity.share
        return int(kept.count_nonzero()) / kept.numel()

    def _pairs(self, tokens: slice, z: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
        """Values, tokens and latents of a chunk's pairs, sorted by token; with a capacity, also which are valid."""
        if kept.dtype != torch.bool:
            if self.capacity is not None:
                self.capacity.note(torch.full((), kept.numel(), device=z.device), z.numel(), z.numel())
            token = torch.arange(tokens.start, tokens.stop, device=z.device).repeat_interleave(kept.shape[1])
            return z.gather(1, kept).reshape(-1), token, kept.reshape(-1)
        token, latent, *valid = pairs_of_mask(kept, tokens.start, self.capacity)
        values = z[token - tokens.start, latent]
        return torch.where(valid[0], values, 0) if valid else values, token, latent, *valid

    def finish(self) -> tuple[Layout, Tensor]:
        """The layout and its values."""
        if self.dense is not None:
            values, mask = self.dense
            return Dense(mask), values
        values, token, latent, *valid = map(torch.cat, zip(*self.sparse, strict=True))
        return Sparse(token, latent, self.n_tokens, self.n_latents, *valid), values


def pairs_of_mask(mask: Bool[Tensor, "b F"], start: int, capacity: Capacity | None) -> tuple[Tensor, ...]:
    """Tokens, from `start` on, and latents where a mask holds, sorted; with a capacity, also which are valid."""
    if capacity is None:
        token, latent = mask.nonzero(as_tuple=True)
        return token + start, latent
    n_reserved = min(math.ceil(capacity.share * mask.numel()), mask.numel())
    n_kept = mask.count_nonzero()
    capacity.note(n_kept, mask.numel(), n_reserved)
    place = torch.arange(n_reserved, device=mask.device)
    valid = place < n_kept
    # Padding stands on the chunk's last token, which keeps the order, and on all latents in turn.
    token, latent = mask.nonzero_static(size=n_reserved).unbind(1)
    token = torch.where(valid, token, len(mask) - 1)
    latent = torch.where(valid, latent, place % mask.shape[1])
    return token + start, latent, valid
