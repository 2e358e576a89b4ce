"""Which latents are active on which token, in two layouts, and the three products that layouts differ in.

`Sparse` lists the active (token, latent) pairs; its products touch nothing else. `Dense` is the whole [B, F] matrix
with a mask; its products are ordinary matrix products, a chunk of tokens at a time. Both give the same values; a caller
cannot tell them apart as long as it lets the layout do the sums.

A place of `Dense` outside its mask is padding: it counts nowhere and gets no gradient.

Shapes: B tokens, D = d_in, F = d_sae. V, the shape of values: [P] pairs of `Sparse`, [B, F] of `Dense`.
"""

import functools
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sae_bench.device import has_cuda
from sae_bench.saes.chunks import chunk_size, slices
from sae_bench.saes.sums import sum_per_latent, sum_per_token

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Sparse:
    """Pairs sorted by token."""

    token: Int[Tensor, " P"]
    latent: Int[Tensor, " P"]
    n_tokens: int
    n_latents: int

    @functools.cached_property
    def offsets(self) -> Int[Tensor, " B_plus_1"]:
        """Where the pairs of each token begin."""
        return torch.searchsorted(self.token, torch.arange(self.n_tokens + 1, device=self.token.device))

    @functools.cached_property
    def by_latent(self) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"], Int[Tensor, " F_plus_1"]]:
        """The transpose: the order that sorts the pairs by latent, their tokens in it, offsets per latent."""
        latent, order = self.latent.sort(stable=True)
        offsets = torch.searchsorted(latent, torch.arange(self.n_latents + 1, device=latent.device))
        return order, self.token[order], offsets

    def fill(self, values: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Values that may depend on the latent alone, written out for every place."""
        return values

    def per_latent(self, parameter: Float[Tensor, " F"]) -> Float[Tensor, " P"]:
        """A parameter's value for every place, or what broadcasts to it; differentiable."""
        return parameter.index_select(0, self.latent)  # whose backward is one accumulation, no general scatter

    def total(self, values: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """The sum over active places; differentiable."""
        return values.sum()

    def total_per_token(self, values: Float[Tensor, " P"]) -> Float[Tensor, " B"]:
        """The sum over each token's active places; differentiable."""
        return values.new_zeros(self.n_tokens).index_add(0, self.token, values)

    def total_per_latent(self, values: Float[Tensor, " P"], *, clean: bool) -> Float[Tensor, " F"]:
        """The sum over each latent's active places; differentiable. `clean` as for the products."""
        return self.sums(values)

    def per_token(self, fired: Bool[Tensor, " P"]) -> Int[Tensor, " B"]:
        """How many active places of each token hold True."""
        counts = fired.long()
        return counts.new_zeros(self.n_tokens).index_add_(0, self.token, counts)

    def by_group(self, fired: Bool[Tensor, " P"], group: Int[Tensor, " B"] | None, n: int) -> Float[Tensor, "n F"]:
        """How many active places of each latent hold True, for each of n groups of tokens."""
        cell = self.latent if group is None else group[self.token] * self.n_latents + self.latent
        counts = fired.float()
        return counts.new_zeros(n * self.n_latents).index_add_(0, cell, counts).view(n, -1)

    def pairs(self) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Any]:
        """Token and latent of every active place, sorted by token, and the index that takes them out of values."""
        return self.token, self.latent, slice(None)

    def grouped(self, sizes: Sequence[int]) -> tuple["Sparse", Int[Tensor, " P"]]:
        """Each token as G, one for each group of latents, [B * G], and the order of its values."""
        ends = torch.tensor(sizes, device=self.latent.device).cumsum(0)
        group = torch.bucketize(self.latent, ends, right=True)
        token, order = (self.token * len(sizes) + group).sort(stable=True)
        return Sparse(token, self.latent[order], self.n_tokens * len(sizes), self.n_latents), order

    # --- products: `clean` values are zero already where they are padding; others count as zero there -------------

    def rows(self, values: Float[Tensor, " P"], W: Float[Tensor, "F D"], *, clean: bool) -> Float[Tensor, "B D"]:
        """sum_i values[t, i] W[i] for every token t."""
        return _bags(self.latent, W, self.offsets, values)

    def rows_transposed(
        self, values: Float[Tensor, " P"], x: Float[Tensor, "B D"], *, clean: bool
    ) -> Float[Tensor, "F D"]:
        """sum_t values[t, i] x[t] for every latent i."""
        order, token, offsets = self.by_latent
        return _bags(token, x, offsets, values[order])

    def sums(self, values: Float[Tensor, " P"]) -> Float[Tensor, " F"]:
        """sum_t values[t, i] for every latent i; the values are clean."""
        return values.new_zeros(self.n_latents).index_add_(0, self.latent, values)

    def inner_products(self, left: Float[Tensor, "B D"], right: Float[Tensor, "F D"]) -> Float[Tensor, " P"]:
        """left[t] . right[i] for every active place (t, i), zero elsewhere."""
        if (gpu := kernels_for(left.device)) is not None:
            product: Tensor = gpu.inner_products(left, right, self.latent, self.offsets)
            return product
        return self._sampled_product(left, right) if left.device.type == "cpu" else self._gathered(left, right)

    def _sampled_product(self, left: Tensor, right: Tensor) -> Tensor:
        with warnings.catch_warnings():  # torch announces once per process that CSR is in beta; 2.11, what we ask for
            warnings.filterwarnings("ignore", message="Sparse (CSR|invariant checks)", category=UserWarning)
            pairs = torch.sparse_csr_tensor(
                self.offsets,
                self.latent,
                left.new_zeros(len(self.latent)),
                (self.n_tokens, self.n_latents),
                check_invariants=False,  # `select` made them
            )
        product: Tensor = torch.sparse.sampled_addmm(pairs, left, right.T, beta=0.0)
        return product.values()

    def _gathered(self, left: Tensor, right: Tensor) -> Tensor:
        """The same from gathered rows, some pairs at a time: bounded memory, and one order of additions."""
        at_once = chunk_size(left.shape[1], left.device)
        parts = zip(self.token.split(at_once), self.latent.split(at_once), strict=True)
        return torch.cat([torch.linalg.vecdot(left[token], right[latent]) for token, latent in parts])


@dataclass(eq=False)
class Dense:
    """The whole matrix with a mask, for sets that are not sparse; it answers what `Sparse` does."""

    mask: Bool[Tensor, "B F"]

    def __post_init__(self) -> None:
        self.n_tokens, self.n_latents = self.mask.shape

    def fill(self, values: Float[Tensor, "..."]) -> Float[Tensor, "B F"]:
        return values.expand(self.mask.shape)

    def per_latent(self, parameter: Float[Tensor, " F"]) -> Float[Tensor, " F"]:
        return parameter  # broadcasts over the tokens

    def total(self, values: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        return self.total_per_token(values).sum()

    def total_per_token(self, values: Float[Tensor, "..."]) -> Float[Tensor, " B"]:
        return sum_per_token(self.fill(values), self.mask)

    def total_per_latent(self, values: Float[Tensor, "B F"], *, clean: bool) -> Float[Tensor, " F"]:
        return sum_per_latent(values if clean else torch.where(self.mask, values, 0), self.mask)

    def per_token(self, fired: Bool[Tensor, "B F"]) -> Int[Tensor, " B"]:
        return (fired & self.mask).sum(1)

    def by_group(self, fired: Bool[Tensor, "B F"], group: Int[Tensor, " B"] | None, n: int) -> Float[Tensor, "n F"]:
        counts = torch.zeros(n, self.n_latents, device=fired.device)
        for tokens in self._chunks():
            some = (fired[tokens] & self.mask[tokens]).float()
            if group is None:
                counts += some.sum(0, keepdim=True)
            else:
                counts.index_add_(0, group[tokens], some)
        return counts

    def pairs(self) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Any]:
        token, latent = self.mask.nonzero(as_tuple=True)
        return token, latent, (token, latent)

    def rows(self, values: Float[Tensor, "B F"], W: Float[Tensor, "F D"], *, clean: bool) -> Float[Tensor, "B D"]:
        if clean:
            return values @ W
        out = W.new_empty(self.n_tokens, W.shape[1])
        for tokens, matrix in self._masked(values):
            torch.mm(matrix, W, out=out[tokens])
        return out

    def rows_transposed(
        self, values: Float[Tensor, "B F"], x: Float[Tensor, "B D"], *, clean: bool
    ) -> Float[Tensor, "F D"]:
        if clean:
            return values.T @ x
        out = x.new_zeros(self.n_latents, x.shape[1])
        for tokens, matrix in self._masked(values):
            out.addmm_(matrix.T, x[tokens])
        return out

    def sums(self, values: Float[Tensor, "B F"]) -> Float[Tensor, " F"]:
        return values.sum(0)

    def inner_products(self, left: Float[Tensor, "B D"], right: Float[Tensor, "F D"]) -> Float[Tensor, "B F"]:
        out = left.new_empty(self.mask.shape)
        buffer = left.new_empty(min(self.n_tokens, chunk_size(self.n_latents, left.device)), self.n_latents)
        for tokens in self._chunks():
            some = torch.mm(left[tokens], right.T, out=buffer[: tokens.stop - tokens.start])
            out[tokens].copy_(self.mask[tokens]).mul_(some)
        return out

    def _chunks(self) -> Iterator[slice]:
        return slices(self.n_tokens, chunk_size(self.n_latents, self.mask.device))

    def _masked(self, values: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield a chunk of tokens' values with zeros in the places of padding; each chunk overwrites the last."""
        buffer: Tensor | None = None
        for tokens in self._chunks():
            some = values[tokens]
            if buffer is None:
                buffer = torch.empty_like(some, memory_format=torch.contiguous_format)
            # In two steps: three times as fast as a product of two types.
            yield tokens, buffer[: len(some)].copy_(self.mask[tokens]).mul_(some)


def _bags(index: Tensor, W: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """For each bag, a stretch of `index`, the weighted sum of W's rows."""
    if (gpu := kernels_for(W.device)) is not None:
        total: Tensor = gpu.sum_rows(index, W, offsets, weights)
        return total
    return functional.embedding_bag(index, W, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def kernels_for(device: torch.device) -> ModuleType | None:
    """`triton_products` on a GPU, if Triton is installed, as it is with torch for CUDA on Linux."""
    return _triton_products() if has_cuda(device) else None


@functools.cache
def _triton_products() -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        log.warning("no Triton: sparse products on the GPU take several times as long; pip install triton")
        return None
    return importlib.import_module("sae_bench.saes.triton_products")


Layout = Sparse | Dense
"""The active places of a batch: `n_tokens` B, `n_latents` F."""
