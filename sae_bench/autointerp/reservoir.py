"""Reservoirs: which excerpts of which latents to keep, in memory that does not grow. The K of lowest key stay.

Minus the peak activation as a key keeps the top excerpts. A random key that depends on latent and excerpt alone keeps a
uniform sample, the same one however the text was batched. Infinity keeps an excerpt out.

Shapes: N latents, K kept, W excerpts in a batch, L tokens in an excerpt.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Reservoir:
    """For each of N latents the K excerpts of lowest key seen so far, with the latent's activations if wanted."""

    def __init__(self, n_latents: int, n_kept: int, n_tokens: int, device: torch.device) -> None:
        """`n_tokens`: length of the activations to keep, 0 for none."""
        self.keys = torch.full((n_latents, n_kept), torch.inf, device=device)
        self.excerpt = torch.full((n_latents, n_kept), -1, dtype=torch.long, device=device)
        self.activations = torch.zeros(n_latents, n_kept, n_tokens, device=device)

    def add(
        self, keys: Float[Tensor, "N W"], excerpt: Int[Tensor, " W"], activations: Float[Tensor, "N W L"] | None = None
    ) -> None:
        """Take in a batch of excerpts, numbered `excerpt`."""
        n_kept = self.keys.shape[1]
        # Later batches change few latents: the longer the text, the rarer an excerpt that is among the lowest.
        some = (keys < self.keys[:, -1:]).any(1).nonzero().squeeze(1)
        both = torch.cat([self.keys[some], keys[some]], dim=1)
        lowest, place = both.sort(dim=1, stable=True)  # of equals the earliest stays, however they were batched
        place = place[:, :n_kept]
        new = place >= n_kept
        of_batch = (place - n_kept).clamp(min=0)
        of_old = place.clamp(max=n_kept - 1)
        self.keys[some] = lowest[:, :n_kept]
        self.excerpt[some] = torch.where(new, excerpt[of_batch], self.excerpt[some].gather(1, of_old))
        if activations is not None:
            old, batch = self.activations[some[:, None], of_old], activations[some[:, None], of_batch]
            self.activations[some] = torch.where(new[..., None], batch, old)

    def kept(self, i: int) -> list[tuple[int, list[float]]]:
        """Number and activations of latent i's excerpts, the lowest key first."""
        there = self.keys[i].isfinite().cpu()
        excerpts, activations = self.excerpt[i].cpu()[there].tolist(), self.activations[i].cpu()[there].tolist()
        return list(zip(excerpts, activations, strict=True))

    @staticmethod
    def n_bytes(n_kept: int, n_tokens: int) -> int:
        """Of one latent."""
        return n_kept * (4 + 8 + 4 * n_tokens)


def random_keys(latent: Int[Tensor, " N"], excerpt: Int[Tensor, " W"], salt: int) -> Float[Tensor, "N W"]:
    """A number in [0, 1) for every latent and excerpt, a hash of the two and the salt."""
    mask = 0xFFFFFFFF
    h = (latent[:, None] * 0x9E3779B1 + excerpt * 0x85EBCA6B + salt * 0xC2B2AE35) & mask
    for factor, shift in ((0x7FEB352D, 16), (0x846CA68B & 0x7FFFFFFF, 15), (0x2C1B3C6D, 16)):
        h = ((h ^ (h >> shift)) * factor) & mask
    return (h >> 8).float() / 2**24
