"""What a GPU does best in kernels of its own: sums and inner products over active pairs, and rounding with its bound.

A [F, D] matrix does not fit into the cache of a GPU, a stripe of its columns does: kernels go through the stripes one
after the other, and all tokens read a stripe while it is there. No sum is made by atomic additions: the same inputs
give the same bits.

Shapes: B tokens, D = d_in, F = d_sae, P pairs, N rows.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

STRIPE_BYTES = 32 << 20
"""Size of a stripe: most of an H100's second cache."""

IN_FLIGHT = 4096
"""Numbers that one program reads at once: enough to keep the memory busy."""


@triton.jit  # type: ignore[untyped-decorator]
def _sum_rows(index, W, offsets, weights, out, n_in, n_columns: tl.constexpr, n_pairs: tl.constexpr):  # type: ignore[no-untyped-def]
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * n_columns + tl.arange(0, n_columns)
    begin, end = tl.load(offsets + bag), tl.load(offsets + bag + 1)
    total = tl.zeros([n_pairs, n_columns], tl.float32)
    for start in range(begin, end, n_pairs):
        pair = start + tl.arange(0, n_pairs)
        row = tl.load(index + pair, mask=pair < end, other=0)
        weight = tl.load(weights + pair, mask=pair < end, other=0.0)
        inside = (pair < end)[:, None] & (column < n_in)[None, :]
        total += weight[:, None] * tl.load(W + row[:, None] * n_in + column[None, :], mask=inside, other=0.0)
    tl.store(out + bag * n_in + column, tl.sum(total, axis=0), mask=column < n_in)


@triton.jit  # type: ignore[untyped-decorator]
def _inner_products(left, right, latent, offsets, out, n_in, n_all, n_columns: tl.constexpr, n_pairs: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * n_columns + tl.arange(0, n_columns)
    begin, end = tl.load(offsets + token), tl.load(offsets + token + 1)
    x = tl.load(left + token * n_in + column, mask=column < n_in, other=0.0)
    part = out + tl.program_id(1).to(tl.int64) * n_all
    for start in range(begin, end, n_pairs):
        pair = start + tl.arange(0, n_pairs)
        row = tl.load(latent + pair, mask=pair < end, other=0)
        inside = (pair < end)[:, None] & (column < n_in)[None, :]
        w = tl.load(right + row[:, None] * n_in + column[None, :], mask=inside, other=0.0)
        tl.store(part + pair, tl.sum(w * x[None, :], axis=1), mask=pair < end)


@triton.jit
def _rounded_up(value, low, eps, least):  # type: ignore[no-untyped-def]
    return (value * (1 + eps) + least).to(low.dtype.element_ty).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _bounded_rows(  # type: ignore[no-untyped-def]
    rows, low, bound, bias, size, scales, mine: tl.constexpr, sums, hidden, eps, least, n_in, stride,
    n_columns: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, n_columns)
    at = low + row * stride
    scale, product_scale = tl.load(scales + mine), tl.load(scales) * tl.load(scales + 1)
    value = tl.load(rows + row * n_in + column, mask=column < n_in, other=0.0) * scale
    rounded = value.to(low.dtype.element_ty)
    tl.store(at + column, rounded, mask=column < stride)  # with zeros where there is no column
    lost = value - rounded.to(tl.float32)
    error = tl.sqrt(tl.sum(lost * lost, axis=0)) + hidden
    norm = tl.sqrt(tl.sum(value * value, axis=0)) + error
    tl.debug_barrier()  # what comes next is written over some of the zeros
    if mine == 0:  # a token
        first = _rounded_up(error + sums * (norm + scale * tl.load(size + row)), low, eps, least)
        second = _rounded_up(norm, low, eps, least)
        third, high, rest, largest = 1.0, 1.0, 1.0, norm
    else:  # a latent
        shift = tl.load(bias + row) * product_scale
        high = shift.to(low.dtype.element_ty).to(tl.float32)
        rest = shift - high
        first, second = _rounded_up(norm, low, eps, least), _rounded_up(error, low, eps, least)
        third = _rounded_up(sums * product_scale * tl.load(size + row) + tl.abs(rest) * eps, low, eps, least)
        largest = tl.maximum(norm, tl.abs(shift))
    tl.store(at + n_in, first)
    tl.store(at + n_in + 1, second)
    tl.store(at + n_in + 2, third)
    tl.store(at + n_in + 3, high)
    tl.store(at + n_in + 4, rest)
    tl.store(bound + row * 4, first)
    tl.store(bound + row * 4 + 1, second)
    tl.store(bound + row * 4 + 2, third)
    tl.store(bound + row * 4 + 3, largest)


@triton.jit  # type: ignore[untyped-decorator]
def _largest_of_each(values, offsets, index, k, n_at_once: tl.constexpr, n_beside: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + token), tl.load(offsets + token + 1)
    for start in range(begin, end, n_at_once):
        pair = start + tl.arange(0, n_at_once)
        value = tl.load(values + pair, mask=pair < end, other=-float("inf"))
        n_before = tl.zeros([n_at_once], tl.int32)
        for other_start in range(begin, end, n_beside):
            other = other_start + tl.arange(0, n_beside)
            beside = tl.load(values + other, mask=other < end, other=-float("inf"))
            before = (beside[None, :] > value[:, None]) | (
                (beside[None, :] == value[:, None]) & (other[None, :] < pair[:, None])
            )
            n_before += tl.sum((before & (other < end)[None, :]).to(tl.int32), axis=1)
        tl.store(index + token * k + n_before, pair, mask=(pair < end) & (n_before < k))


def sum_rows(
    index: Int[Tensor, " P"], W: Float[Tensor, "N D"], offsets: Int[Tensor, " B_plus_1"], weights: Float[Tensor, " P"]
) -> Float[Tensor, "B D"]:
    """For each bag, the stretch of `index` from offsets[t] to offsets[t + 1], the weighted sum of W's rows."""
    W = W.contiguous()
    out = W.new_empty(len(offsets) - 1, W.shape[1])
    n_columns, n_pairs = _tile(W)
    grid = (len(out), triton.cdiv(W.shape[1], n_columns))
    _sum_rows[grid](index, W, offsets, weights.contiguous(), out, W.shape[1], n_columns, n_pairs)
    return out


def inner_products(
    left: Float[Tensor, "B D"],
    right: Float[Tensor, "F D"],
    latent: Int[Tensor, " P"],
    offsets: Int[Tensor, " B_plus_1"],
) -> Float[Tensor, " P"]:
    """left[t] . right[i] for every pair (t, i); the pairs of token t are those from offsets[t] to offsets[t + 1]."""
    left, right = left.contiguous(), right.contiguous()
    n_columns, n_pairs = _tile(right)
    n_stripes = triton.cdiv(left.shape[1], n_columns)
    parts = left.new_empty(n_stripes, len(latent))
    grid = (len(left), n_stripes)
    _inner_products[grid](left, right, latent, offsets, parts, left.shape[1], len(latent), n_columns, n_pairs)
    return parts.sum(0)


def bounded_rows(
    rows: Float[Tensor, "N D"],
    low: Float[Tensor, "N K"],
    bias: Float[Tensor, " N"],
    size: Float[Tensor, " N"],
    scales: Float[Tensor, " 2"],
    sums: float,
    hidden: float,
    *,
    tokens: bool,
) -> Float[Tensor, "N 4"]:
    """Write rows, rounded, and the dimensions that hold the bound into `low`; the bound, and how large numbers are.

    What `screening._with_bound` says, in one pass over the rows. Of tokens `bias` is not read.
    """
    rows = rows.contiguous()
    bound = rows.new_empty(len(rows), 4)
    info = torch.finfo(low.dtype)
    n_columns = triton.next_power_of_2(low.shape[1])
    numbers = 0 if tokens else 1, sums, hidden, info.eps, info.tiny * info.eps
    parts = bias.contiguous(), size.contiguous()
    _bounded_rows[(len(rows),)](
        rows, low, bound, *parts, scales, *numbers, rows.shape[1], low.stride(0), n_columns, num_warps=8
    )
    return bound


def largest_of_each(
    values: Float[Tensor, " P"], offsets: Int[Tensor, " B_plus_1"], k: int
) -> Int[Tensor, " B_times_k"]:
    """Places of the k largest values of each token, which has as many at least; of equal ones the first."""
    index = offsets.new_empty((len(offsets) - 1) * k)
    _largest_of_each[(len(offsets) - 1,)](values, offsets, index, k, 32, 128)
    return index


def _tile(W: Float[Tensor, "N D"]) -> tuple[int, int]:
    """Columns of a stripe, a power of two worth reading at once, and pairs that are worked on at once."""
    widest: int = triton.next_power_of_2(W.shape[1])
    fits = 1 << max(0, (STRIPE_BYTES // (W.element_size() * len(W))).bit_length() - 1)
    n_columns = max(min(fits, widest, 1024), min(64, widest))
    return n_columns, max(4, min(32, IN_FLIGHT // n_columns))
