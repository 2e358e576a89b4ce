"""Which pairs are kept, said so that they can be found without the whole encoder product in full precision.

Any function of pre-activations may select pairs; these three also say which pairs they could keep where only bounds of
the pre-activations are known, and choose among those once their values are. That is what `screening` needs.

    Above(threshold)          z > threshold
    Largest(k)                the k largest of each token; `among` some latents, if they are given; by |z| if `signed`
    LargestOfBatch(n)         the n largest of the whole batch

Of equal values the first is kept: the one of the earlier token, then of the lower latent.

Shapes: b tokens, B tokens of the batch, F = d_sae, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_bench.saes.layouts import Sparse

GROUPS = (16, 8, 4, 2, 1)
"""Values that share one place when a k-th largest is looked for."""


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
    """Keep the n largest z of a batch, all of them if there are no more."""

    n: int

    def __call__(self, z: Float[Tensor, "B F"]) -> Bool[Tensor, "B F"]:
        flat = z.reshape(-1)
        if z.device.type != "cpu" or not 0 < self.n < len(flat):
            return self._largest(flat).view_as(z)
        places = (flat >= self.lower_bound(z)).nonzero().squeeze(1)  # a CPU sorts slowly, and tells fast how many
        kept = places[self._largest(flat[places])]
        return torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, kept, True).view_as(z)

    def lower_bound(self, z: Float[Tensor, "B F"]) -> Float[Tensor, ""]:
        """A number that n of the values reach, close to the n-th largest: that of the largest of groups of values."""
        size = group_size(-(-self.n // len(z)), z.shape[1])
        n_groups = z.shape[1] // size
        largest = z[:, : size * n_groups].unflatten(1, (size, n_groups)).amax(1).flatten()
        return largest.topk(self.n, sorted=False).values.amin() if self.n <= len(largest) else z.amin()

    def settle(self, z: Float[Tensor, " P"], pairs: Sparse) -> Bool[Tensor, " P"]:
        return self._largest(z)

    def split(self, kept: Sequence[Tensor]) -> list["LargestOfBatch"]:
        """The same rule for each part of a batch, from the values that it keeps of each part alone, [p].

        The n largest of a batch are the n_i largest of each part, for some n_i. Of equal values the earlier part's.
        """
        sizes = torch.tensor([len(values) for values in kept])
        part = torch.arange(len(kept)).repeat_interleave(sizes)[self._largest(torch.cat(list(kept))).cpu()]
        return [LargestOfBatch(n) for n in part.bincount(minlength=len(kept)).tolist()]

    def _largest(self, z: Float[Tensor, " P"]) -> Bool[Tensor, " P"]:
        if not 0 < self.n < len(z):
            return torch.full_like(z, self.n > 0, dtype=torch.bool)
        return largest_mask(z[None], self.n)[0]


Rule = Above | Largest | LargestOfBatch


def largest(z: Float[Tensor, "b F"], k: int) -> Tensor:
    """The k largest of each row: their indices [b, k], or a mask [b, F] where equal values stand at the border."""
    values, indices = z.topk(min(k + 1, z.shape[1]), dim=1)
    if k < z.shape[1] and bool((values[:, k - 1] == values[:, k]).any()):
        return largest_mask(z, k)
    return indices[:, :k]


def group_size(k: int, n: int) -> int:
    """How many of n values share one place when the k-th largest is looked for, so that enough places are left."""
    return next(size for size in GROUPS if size == 1 or n // size >= 4 * k)


def largest_mask(z: Float[Tensor, "b F"], k: int) -> Bool[Tensor, "b F"]:
    """Where the k largest of each row are; of equal ones, the first."""
    least = z.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = z > least, z == least
    return above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
