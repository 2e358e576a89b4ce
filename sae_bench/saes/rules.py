"""Which pairs are kept, said so that they can be found without the whole encoder product in full precision.

Any function of pre-activations may select pairs; these three also say which pairs they could keep where only bounds of
the pre-activations are known, and choose among those once their values are. That is what `screening` needs.

    Above(threshold)          z > threshold
    Largest(k)                the k largest of each token; `among` some latents, if they are given; by |z| if `signed`
    LargestOfBatch(n)         the n largest of the whole batch

Of equal values the first is kept: the one of the earlier token, then of the lower latent.

Shapes: b tokens, B tokens of the batch, F = d_sae, P pairs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_bench.saes.layouts import Sparse


@dataclass(frozen=True, eq=False)
class Above:
    """Keep where z > threshold: one for all latents, or one for each, [F]."""

    threshold: Float[Tensor, " F"] | Float[Tensor, ""] | float = 0.0

    def __call__(self, z: Float[Tensor, "b F"]) -> Bool[Tensor, "b F"]:
        return z > self.threshold

    def settle(self, z: Float[Tensor, " P"], pairs: Sparse) -> Bool[Tensor, " P"]:
        """Which of some pairs are kept, if no other could be."""
        if isinstance(self.threshold, Tensor):
            return z > self.threshold.expand(pairs.n_latents)[pairs.latent]
        return z > self.threshold


@dataclass(frozen=True, eq=False)
class Largest:
    """Keep the k largest z of each token; `among` these latents alone (ascending), all of them if they are no more."""

    k: int
    among: Int[Tensor, " n"] | None = None
    signed: bool = False
    """Whether it is |z| that has to be large, of either sign."""

    def __call__(self, z: Float[Tensor, "b F"]) -> Tensor:
        if self.among is None:
            return largest(self.size(z), self.k)
        if len(self.among) <= self.k:
            return self.among.expand(len(z), -1)
        kept = largest(self.size(z[:, self.among]), self.k)
        if kept.dtype != torch.bool:
            return self.among[kept]
        return torch.zeros_like(z, dtype=torch.bool).index_copy_(1, self.among, kept)

    def size(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What has to be large."""
        return z.abs() if self.signed else z

    def settle(self, z: Float[Tensor, " P"], pairs: Sparse) -> Bool[Tensor, " P"]:
        place = torch.arange(len(z), device=z.device) - pairs.offsets[pairs.token]
        matrix = z.new_full((pairs.n_tokens, int(place.max()) + 1 if len(place) else 1), -torch.inf)
        matrix[pairs.token, place] = self.size(z)
        return largest_mask(matrix, min(self.k, matrix.shape[1]))[pairs.token, place]


@dataclass(frozen=True, eq=False)
class LargestOfBatch:
    """Keep the n largest z of a batch."""

    n: int

    def __call__(self, z: Float[Tensor, "B F"]) -> Bool[Tensor, "B F"]:
        return largest_mask(z.reshape(1, -1), self.n).view_as(z)

    def settle(self, z: Float[Tensor, " P"], pairs: Sparse) -> Bool[Tensor, " P"]:
        order = z.sort(descending=True, stable=True).indices
        return torch.zeros_like(z, dtype=torch.bool).index_fill_(0, order[: self.n], True)


Rule = Above | Largest | LargestOfBatch


def largest(z: Float[Tensor, "b F"], k: int) -> Tensor:
    """The k largest of each row: their indices [b, k], or a mask [b, F] where equal values stand at the border."""
    values, indices = z.topk(min(k + 1, z.shape[1]), dim=1)
    if k < z.shape[1] and bool((values[:, k - 1] == values[:, k]).any()):
        return largest_mask(z, k)
    return indices[:, :k]


def largest_mask(z: Float[Tensor, "b F"], k: int) -> Bool[Tensor, "b F"]:
    """Where the k largest of each row are; of equal ones, the first."""
    least = z.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = z > least, z == least
    return above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
