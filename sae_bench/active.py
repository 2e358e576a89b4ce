"""Active-set linear algebra: the few (token, latent) pairs that matter, and products over them alone.

A sparse autoencoder uses 20-100 of its thousands of latents on a token. Only the encoder product `z = x W_enc` has to
touch them all; everything after it - nonlinearity, penalty, decoder, every gradient - lives on the active pairs:

    z = select(x, W_enc, b_enc, keep)       # which pairs are active, and their pre-activations
    f = z.with_values(relu(z.values))       # elementwise maths on the pairs
    x_hat = decode(f, W_dec, b_dec)         # sparse times dense

The two functions carry gradients for the pairs only, and work through the tokens in chunks, so the [B, F] matrix never
exists whole. When the set is not sparse (an untrained ReLU has half of everything active) the same functions use dense
products chunk by chunk; a plugin never knows. Values and gradients equal the dense formulation.

Shapes: B tokens, D = d_in, F = d_sae, P active pairs. W_enc is [D, F] by meaning and stored latent by latent (its
transpose is contiguous), so that the gradient of a latent's weights is one contiguous row; see `latent_major`.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

KeepRule = Callable[[Tensor], Tensor]
"""Maps pre-activations [b, F] of some tokens to what to keep: a boolean mask [b, F], or latents' indices [b, k]."""

Kernels = Literal["auto", "dense", "sparse"]

CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}
"""Size of the [chunk, F] buffer: small enough for a CPU's cache, large enough to fill a GPU."""

# Share of active pairs above which dense products are used; `crossover` measures the one of the machine at hand.
_dense_above: ContextVar[float] = ContextVar("dense_above", default=0.1)


class Pairs:
    """The pattern of an active set: which latents are active on which token, sorted by token."""

    def __init__(self, latent: Int[Tensor, "P"], offsets: Int[Tensor, "B_plus_1"], n_latents: int) -> None:
        self.latent, self.offsets, self.n_latents = latent, offsets, n_latents
        self.n_tokens = len(offsets) - 1
        self.dense = len(latent) > _dense_above.get() * self.n_tokens * n_latents

    @functools.cached_property
    def token(self) -> Int[Tensor, "P"]:
        """The token of each pair."""
        tokens = torch.arange(self.n_tokens, device=self.latent.device)
        return tokens.repeat_interleave(self.offsets.diff(), output_size=len(self.latent))

    @functools.cached_property
    def by_latent(self) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"], Int[Tensor, "F_plus_1"]]:
        """The transposed pattern: the order that sorts the pairs by latent, their tokens in it, offsets per latent."""
        latent, order = self.latent.sort(stable=True)
        offsets = torch.searchsorted(latent, torch.arange(self.n_latents + 1, device=latent.device))
        return order, self.token[order], offsets

    def chunks(self) -> Iterator[tuple[slice, slice, Int[Tensor, "p"]]]:
        """Yield (tokens, pairs, flat position of each pair in the chunk's [b, F] matrix), chunk by chunk."""
        size = chunk_size(self.n_latents, self.latent.device)
        for start in range(0, self.n_tokens, size):
            stop = min(start + size, self.n_tokens)
            pairs = slice(int(self.offsets[start]), int(self.offsets[stop]))
            flat = (self.token[pairs] - start) * self.n_latents + self.latent[pairs]
            yield slice(start, stop), pairs, flat


@dataclass(frozen=True)
class Active:
    """Values on the active pairs of a batch: pre-activations as `select` returns them, or latents' activations f."""

    pairs: Pairs
    values: Float[Tensor, "P"]

    @property
    def latent(self) -> Int[Tensor, "P"]:
        return self.pairs.latent

    @property
    def n_tokens(self) -> int:
        return self.pairs.n_tokens

    def with_values(self, values: Float[Tensor, "P"]) -> "Active":
        """The same pairs with other values."""
        return Active(self.pairs, values)

    def per_latent(self, parameter: Float[Tensor, "F"]) -> Float[Tensor, "P"]:
        """Look up a per-latent parameter (a threshold, a norm) for every pair; differentiable."""
        gathered: Tensor = _apply(_Gather, parameter, self.pairs.latent)
        return gathered

    def sum_per_token(self, values: Float[Tensor, "P"]) -> Float[Tensor, ""]:
        """Sum of `values` over the active latents, mean over ALL tokens of the batch (those without any included)."""
        return values.sum() / self.n_tokens

    def active_per_token(self) -> Int[Tensor, "B"]:
        """Number of values above zero on each token."""
        fired = (self.values.detach() > 0).long()
        return fired.new_zeros(self.n_tokens).index_add_(0, self.pairs.token, fired)

    def count_per_latent(self, group: Int[Tensor, "B"] | None = None, n_groups: int = 1) -> Float[Tensor, "n_groups F"]:
        """On how many tokens of each group (default: one group) each latent's value is above zero."""
        fired = (self.values.detach() > 0).float()
        cell = self.latent if group is None else group[self.pairs.token] * self.pairs.n_latents + self.latent
        counts = fired.new_zeros(n_groups * self.pairs.n_latents).index_add_(0, cell, fired)
        return counts.view(n_groups, -1)

    def to_dense(self) -> Float[Tensor, "B F"]:
        """The [B, F] matrix, zero where inactive; for tests and small inputs."""
        dense = self.values.new_zeros(self.n_tokens, self.pairs.n_latents)
        return dense.index_put((self.pairs.token, self.pairs.latent), self.values)


def select(
    x: Float[Tensor, "B D"],
    W_enc: Float[Tensor, "D F"],
    b_enc: Float[Tensor, "F"],
    keep: KeepRule,
    b_pre: Float[Tensor, "D"] | None = None,
) -> Active:
    """Return z = (x - b_pre) W_enc + b_enc on the pairs that `keep` selects.

    `b_pre` is the pre-encoder bias, if the architecture has one. Gradients flow to x, W_enc, b_enc and b_pre from the
    selected pairs alone; `keep` itself is not differentiated.
    """
    return select_all(x, W_enc, b_enc, (keep,), b_pre)[0]


def select_all(
    x: Float[Tensor, "B D"],
    W_enc: Float[Tensor, "D F"],
    b_enc: Float[Tensor, "F"],
    keeps: Sequence[KeepRule],
    b_pre: Float[Tensor, "D"] | None = None,
) -> tuple[Active, ...]:
    """`select` with several rules at once: one encoder product, one active set for each rule."""
    out = _apply(_Select, x, W_enc, b_enc, b_pre, keeps)
    return tuple(Active(pairs, z) for pairs, z in zip(out[: len(keeps)], out[len(keeps) :], strict=True))


def decode(f: Active, W_dec: Float[Tensor, "F D"], b_dec: Float[Tensor, "D"] | None = None) -> Float[Tensor, "B D"]:
    """Return x_hat = f W_dec + b_dec (without b_dec when None), with gradients to f, W_dec and b_dec."""
    product: Tensor = _apply(_Decode, f.values, W_dec, f.pairs)
    return product if b_dec is None else product + b_dec


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None, keeps: Sequence[KeepRule]
    ) -> tuple[Any, ...]:
        centred = x if b_pre is None else x - b_pre
        parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in keeps]
        for z in _pre_activations(centred, W_enc, b_enc):
            for keep, found in zip(keeps, parts, strict=True):
                token, latent = _kept(keep(z))
                found.append((z[token, latent], latent, torch.bincount(token, minlength=len(z))))
        values, patterns = [], []
        for found in parts:
            z, latent, counts = map(torch.cat, zip(*found, strict=True))
            values.append(z)
            patterns.append(Pairs(latent, functional.pad(counts.cumsum(0), (1, 0)), W_enc.shape[1]))
        ctx.save_for_backward(centred, W_enc)
        ctx.patterns = patterns
        return *patterns, *values

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        centred, W_enc = ctx.saved_tensors
        needs_x, needs_W, _, needs_pre, _ = ctx.needs_input_grad
        dx = dW_enc = db_enc = None
        for pairs, dz in zip(ctx.patterns, grads[len(ctx.patterns) :], strict=True):
            dz = dz.contiguous()
            db_enc = _add(db_enc, dz.new_zeros(pairs.n_latents).index_add_(0, pairs.latent, dz))
            dW_enc = _add(dW_enc, rows_transposed(pairs, dz, centred).T) if needs_W else None
            dx = _add(dx, rows(pairs, dz, W_enc.T)) if needs_x else None
        # Every token subtracts the same b_pre, so its gradient needs only the sums over tokens.
        db_pre = -(W_enc @ db_enc) if needs_pre else None
        return dx, dW_enc, db_enc, db_pre, None


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, W_dec: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(f, W_dec)
        ctx.pairs = pairs
        return rows(pairs, f, W_dec)

    @staticmethod
    def backward(ctx: Any, dx_hat: Tensor) -> tuple[Tensor | None, ...]:
        f, W_dec = ctx.saved_tensors
        dx_hat = dx_hat.contiguous()
        needs_f, needs_W, _ = ctx.needs_input_grad
        return (
            inner_products(ctx.pairs, dx_hat, W_dec) if needs_f else None,
            rows_transposed(ctx.pairs, f, dx_hat) if needs_W else None,
            None,
        )


class _Gather(torch.autograd.Function):
    """parameter[latent]; its backward is one accumulation instead of indexing's general scatter."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, latent: Tensor) -> Tensor:
        ctx.save_for_backward(latent)
        ctx.n_latents = len(parameter)
        return parameter[latent]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (latent,) = ctx.saved_tensors
        return grad.new_zeros(ctx.n_latents).index_add_(0, latent, grad), None


def _pre_activations(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[Tensor]:
    """Yield x W_enc + b_enc for a chunk of tokens at a time; each chunk overwrites the last."""
    size = chunk_size(W_enc.shape[1], x.device)
    buffer = x.new_empty(min(size, len(x)), W_enc.shape[1])
    for rows in x.split(size):
        out = buffer[: len(rows)]
        if torch.is_autocast_enabled(x.device.type):
            half = torch.get_autocast_dtype(x.device.type)
            torch.add(rows.to(half) @ W_enc.to(half), b_enc, out=out)
        else:
            torch.addmm(b_enc, rows, W_enc, out=out)
        yield out


def _kept(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Turn what a keep rule returned, mask or indices, into (token, latent) of each pair, sorted by token."""
    if kept.dtype == torch.bool:
        token, latent = kept.nonzero(as_tuple=True)
        return token, latent
    tokens = torch.arange(len(kept), device=kept.device).repeat_interleave(kept.shape[1])
    return tokens, kept.reshape(-1)


def rows(pairs: Pairs, values: Tensor, W: Float[Tensor, "F D"]) -> Float[Tensor, "B D"]:
    """sum_i values[t, i] W[i] for every token t."""
    if not pairs.dense:
        return functional.embedding_bag(
            pairs.latent, W, pairs.offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )
    out = W.new_empty(pairs.n_tokens, W.shape[1])
    for tokens, matrix in _dense_chunks(pairs, values):
        torch.mm(matrix, W, out=out[tokens])
    return out


def rows_transposed(pairs: Pairs, values: Tensor, x: Float[Tensor, "B D"]) -> Float[Tensor, "F D"]:
    """sum_t values[t, i] x[t] for every latent i."""
    if not pairs.dense:
        order, token, offsets = pairs.by_latent
        return functional.embedding_bag(
            token, x, offsets, mode="sum", per_sample_weights=values[order], include_last_offset=True
        )
    out = x.new_zeros(pairs.n_latents, x.shape[1])
    for tokens, matrix in _dense_chunks(pairs, values):
        out.addmm_(matrix.T, x[tokens])
    return out


def inner_products(pairs: Pairs, left: Float[Tensor, "B D"], right: Float[Tensor, "F D"]) -> Float[Tensor, "P"]:
    """left[t] . right[i] for every pair (t, i)."""
    if not pairs.dense:
        return _sampled_product(pairs, left, right)
    out = left.new_empty(len(pairs.latent))
    buffer: Tensor | None = None
    for tokens, span, flat in pairs.chunks():
        chunk = left[tokens]
        if buffer is None:
            buffer = left.new_empty(len(chunk), pairs.n_latents)
        product = torch.mm(chunk, right.T, out=buffer[: len(chunk)])
        torch.take(product, flat, out=out[span])
    return out


def _sampled_product(pairs: Pairs, left: Tensor, right: Tensor) -> Tensor:
    with warnings.catch_warnings():  # torch announces once per process that its CSR support is in beta
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        pattern = torch.sparse_csr_tensor(
            pairs.offsets,
            pairs.latent,
            left.new_zeros(len(pairs.latent)),
            (pairs.n_tokens, pairs.n_latents),
            check_invariants=False,  # `select` made them
        )
    product: Tensor = torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0)
    return product.values()


def _dense_chunks(pairs: Pairs, values: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the values of a chunk of tokens written out as a dense [b, F] matrix; each chunk overwrites the last."""
    buffer: Tensor | None = None
    for tokens, span, flat in pairs.chunks():
        if buffer is None:
            buffer = values.new_empty(tokens.stop - tokens.start, pairs.n_latents)
        matrix = buffer[: tokens.stop - tokens.start].zero_()
        matrix.view(-1)[flat] = values[span]
        yield tokens, matrix


def chunk_size(n_latents: int, device: torch.device) -> int:
    """Tokens per chunk, so that a float32 [chunk, n_latents] buffer stays within CHUNK_BYTES of the device."""
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * n_latents))


def latent_major(W: Float[Tensor, "D F"]) -> Float[Tensor, "D F"]:
    """A copy of the matrix, stored latent by latent."""
    return W.T.clone(memory_format=torch.contiguous_format).T


@contextmanager
def kernels(choice: Kernels, measured: float | None = None) -> Iterator[None]:
    """Within the block use dense products always, never, or above the density `measured` (None: the default)."""
    above = {"dense": -1.0, "sparse": 1.0, "auto": _dense_above.get() if measured is None else measured}[choice]
    token = _dense_above.set(above)
    try:
        yield
    finally:
        _dense_above.reset(token)
