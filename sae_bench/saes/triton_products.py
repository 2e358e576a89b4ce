"""What a GPU does best in kernels of its own: sums and inner products over active pairs, and rounding with its bound.

A [F, D] matrix does not fit into the cache of a GPU, a stripe of its columns does: kernels go through the stripes one
after the other, and all tokens read a stripe while it is there. No sum is made by atomic additions: the same inputs
give the same bits.

Shapes: B tokens, D = d_in, F = d_sae, P pairs, N rows.
"""

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


@triton.jit  # type: ignore[untyped-decorator]
def _round_rows(rows, low, norms, errors, scale, n_in, stride, n_columns: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, n_columns)
    value = tl.load(rows + row * n_in + column, mask=column < n_in, other=0.0) * tl.load(scale)
    rounded = value.to(low.dtype.element_ty)
    tl.store(low + row * stride + column, rounded, mask=column < n_in)
    error = value - rounded.to(tl.float32)
    tl.store(norms + row, tl.sqrt(tl.sum(value * value, axis=0)))
    tl.store(errors + row, tl.sqrt(tl.sum(error * error, axis=0)))


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


def round_rows(
    rows: Float[Tensor, "N D"], low: Float[Tensor, "N K"], scale: Float[Tensor, ""]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Write scale * rows, rounded, into the first columns of `low`; the norms of the rows and of what rounding took."""
    rows = rows.contiguous()
    norms, errors = rows.new_empty(len(rows)), rows.new_empty(len(rows))
    n_columns = triton.next_power_of_2(rows.shape[1])
    _round_rows[(len(rows),)](rows, low, norms, errors, scale, rows.shape[1], low.stride(0), n_columns, num_warps=8)
    return norms, errors


def _tile(W: Float[Tensor, "N D"]) -> tuple[int, int]:
    """Columns of a stripe, a power of two worth reading at once, and pairs that are worked on at once."""
    widest: int = triton.next_power_of_2(W.shape[1])
    fits = 1 << max(0, (STRIPE_BYTES // (W.element_size() * len(W))).bit_length() - 1)
    n_columns = max(min(fits, widest, 1024), min(64, widest))
    return n_columns, max(4, min(32, IN_FLIGHT // n_columns))
