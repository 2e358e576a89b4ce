"""The pairs that a rule keeps of the whole encoder product, gathered chunk by chunk.

Shapes: b tokens of a chunk, F = d_sae.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.saes.layouts import Dense, Layout, Sparse


class Found:
    """What one rule keeps, gathered chunk by chunk; the first chunk decides on the layout."""

    def __init__(self, n_tokens: int, n_latents: int, dense_above: float) -> None:
        self.n_tokens, self.n_latents, self.dense_above = n_tokens, n_latents, dense_above
        self.dense: tuple[Tensor, Tensor] | None = None
        self.sparse: list[tuple[Tensor, ...]] = []

    def add(self, tokens: slice, z: Float[Tensor, "b F"], kept: Tensor) -> None:
        """Take in what is kept of a chunk: a mask [b, F], or latents' indices [b, k]."""
        if tokens.start == 0 and self._is_dense(kept):
            shape = (self.n_tokens, self.n_latents)
            self.dense = z.new_empty(shape), torch.empty(shape, dtype=torch.bool, device=z.device)
        if self.dense is None:
            self.sparse.append(self._pairs(tokens, z, kept))
            return
        if kept.dtype != torch.bool:
            kept = torch.zeros_like(z, dtype=torch.bool).scatter_(1, kept, True)
        values, mask = self.dense
        mask[tokens] = kept
        values[tokens].copy_(kept).mul_(z)  # three times as fast as a product of two types

    def _is_dense(self, kept: Tensor) -> bool:
        if not 0 <= self.dense_above < 1:  # then nobody has to wait for a number
            return self.dense_above < 0
        if kept.dtype != torch.bool:
            return kept.shape[1] > self.dense_above * self.n_latents
        return int(kept.count_nonzero()) > self.dense_above * kept.numel()

    @staticmethod
    def _pairs(tokens: slice, z: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
        """Values, tokens and latents of a chunk's pairs, sorted by token."""
        if kept.dtype != torch.bool:
            token = torch.arange(tokens.start, tokens.stop, device=z.device).repeat_interleave(kept.shape[1])
            return z.gather(1, kept).reshape(-1), token, kept.reshape(-1)
        token, latent = kept.nonzero(as_tuple=True)
        return z[token, latent], token + tokens.start, latent

    def finish(self) -> tuple[Layout, Tensor]:
        """The layout and its values."""
        if self.dense is not None:
            values, mask = self.dense
            return Dense(mask), values
        values, token, latent = map(torch.cat, zip(*self.sparse, strict=True))
        return Sparse(token, latent, self.n_tokens, self.n_latents), values
