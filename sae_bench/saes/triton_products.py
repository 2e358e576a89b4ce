"""The sampled product of a GPU: inner products of the few pairs of tokens and latents that are active, each row read once.

Shapes: B tokens, D = d_in, F = d_sae, P pairs.
"""

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

PAIRS = 4
"""Pairs of a token that are worked on at once: enough reads under way to keep the memory busy."""


@triton.jit  # type: ignore[untyped-decorator]
def _inner_products(left, right, latent, offsets, out, n_in, BLOCK: tl.constexpr, PAIRS: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + token), tl.load(offsets + token + 1)
    d = tl.arange(0, BLOCK)
    x = tl.load(left + token * n_in + d, mask=d < n_in, other=0.0)
    for start in range(begin, end, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        row = tl.load(latent + pair, mask=pair < end, other=0)
        inside = (pair < end)[:, None] & (d < n_in)[None, :]
        w = tl.load(right + row[:, None] * n_in + d[None, :], mask=inside, other=0.0)
        tl.store(out + pair, tl.sum(w * x[None, :], axis=1), mask=pair < end)


def inner_products(
    left: Float[Tensor, "B D"],
    right: Float[Tensor, "F D"],
    latent: Int[Tensor, " P"],
    offsets: Int[Tensor, " B_plus_1"],
) -> Float[Tensor, " P"]:
    """left[t] . right[i] for every pair (t, i); the pairs of token t are those from offsets[t] to offsets[t + 1]."""
    out = left.new_empty(len(latent))
    block = triton.next_power_of_2(left.shape[1])
    _inner_products[(len(left),)](
        left.contiguous(), right.contiguous(), latent, offsets, out, left.shape[1], block, PAIRS, num_warps=8
    )
    return out
