"""Certified screening: the pairs that a rule keeps, without the encoder product in full precision.

Both factors of z = x W_enc + b are rounded to 16 bits and multiplied. What the rounding can have done to a pair is
bounded (Cauchy-Schwarz), with x~ and w~ the rounded factors:

    |x . w - x~ . w~|  <=  ||x - x~|| ||w|| + ||x~|| ||w - w~|| + gamma ||x~|| ||w~||

gamma ||x~|| ||w~|| is how far apart two float32 sums of the same D products lie, whatever their order (Higham and Mary
2019, SIAM J. Sci. Comput. 41, for rounding errors of mean zero): what float32 itself cannot tell. The bound has low
rank, so it is a few more input dimensions of the same product, rounded upwards: the product then is an upper bound of
z, and costs one pass. Pairs whose upper bound could pass are candidates; the exact float32 values of the candidates
alone are worked out, and the rule chooses among those. No pair is lost that float32 would have kept.

A rule about |z| keeps pairs of either sign. The product U is at least z and at most z + 2 e, e being the bound: so |U|
is at least |z| - 2 e, and |z| at least |U| - 2 e. |U| then takes the part of U, and what it has to reach is 2 e lower.

x is centred first, at b_dec or else at its mean: what all tokens share needs no room in the bound.

Shapes: B tokens, b of them in a chunk, D = d_in, F = d_sae, P pairs, K = D and the dimensions that hold the bound.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.saes.chunks import chunk_size, slices
from sae_bench.saes.layouts import Sparse, kernels_for
from sae_bench.saes.rules import Above, Largest, LargestOfBatch, Rule, group_size
from sae_bench.saes.selection import Found

HIDDEN = 2.0**-62
"""What a number can be whose square underflows in float32."""

LOW = {"cpu": torch.bfloat16, "cuda": torch.float16}
"""Type of the rounded factors. float16 rounds eight times more finely, as fast on a GPU; few CPUs multiply it."""

CONFIDENCE = 8
"""Standard deviations that the rounding of float32 sums is given: less than one sum in 10^13 is rounded more."""

SAMPLE = 1024
"""Rows that say how long rows are on average."""

ROWS = 512
"""Rows that are rounded at once: few enough to stay in a CPU's cache while they are."""

MULTIPLE = 32
"""What the number of input dimensions is padded to a multiple of; matrix units like it so."""

ROUNDED_SUMS = ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")
"""Settings of torch with which float16 products are added in float16; the first is on unless it is set."""


@dataclass(frozen=True)
class Bounded:
    """Rows, rounded, with the dimensions that hold the bound, and these alone in float32."""

    rows: Float[Tensor, "N K"]
    bound: Float[Tensor, "N 4"]
    """Three numbers of which the products with the other side's are the bound, and the largest of the row."""


def screened(
    x: Float[Tensor, "B D"],
    W: Float[Tensor, "F D"],
    b_enc: Float[Tensor, " F"],
    rules: Sequence[Rule],
    limit: float,
    *,
    centred: bool = False,
) -> list[tuple[Sparse, Float[Tensor, " P"]]] | None:
    """For each rule the pairs that it keeps and their pre-activations z = x W^T + b_enc in float32.

    `centred`: x is so already. `limit` is the share of candidates above which exact selection is faster: then None.
    None also where numbers are too large, or where two rules need products of their own, or one its absolute value.
    """
    whole = [rule for rule in rules if not (isinstance(rule, Largest) and rule.among is not None)]
    if len(whole) > 1 and any(isinstance(rule, Above) or _signed(rule) for rule in whole):
        return None
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in whole]
    if whole:
        tokens, latents = _bounded(x, W, b_enc, whole[0], centred)
        for chunk, upper in _products(tokens, latents, at_once=any(isinstance(r, LargestOfBatch) for r in whole)):
            upper = upper.abs_() if _signed(whole[0]) else upper
            for rule, pairs in zip(whole, found, strict=True):
                token, latent = _reaching(upper, _cut(rule, upper, tokens.bound[chunk], latents.bound))
                if chunk.start == 0 and (len(token) > limit * upper.numel() or not _fits(tokens, latents)):
                    return None
                pairs.append((token + chunk.start, latent))
    candidates = iter(found)
    return [
        _settled(rule, _sparse(next(candidates), len(x), len(W)), x, W, b_enc)
        if rule in whole
        else _among(rule, x, W, b_enc)
        for rule in rules
    ]


def _bounded(x: Tensor, W: Tensor, b_enc: Tensor, rule: Rule, centred: bool) -> tuple[Bounded, Bounded]:
    """Tokens and latents whose product is an upper bound of z, or of z - threshold where the rule has one.

    Up to one positive factor: powers of two bring rows to a length of about one.
    """
    bias, bias_size = b_enc, b_enc.abs()
    if centred:
        x_size = torch.zeros_like(x[:, 0])
    else:
        mean = x.mean(0)
        shift = W @ mean
        x_size = torch.linalg.vector_norm(x, dim=1) + torch.linalg.vector_norm(mean)
        x, bias, bias_size = x - mean, bias + shift, bias_size + shift.abs()
    if isinstance(rule, Above) and (isinstance(rule.threshold, Tensor) or rule.threshold != 0):
        theta = torch.as_tensor(rule.threshold, device=x.device)
        bias, bias_size = bias - theta, bias_size + theta.abs()
    scales = _scales(x, W)
    return _with_bound(x, x_size, x_size, scales, tokens=True), _with_bound(W, bias, bias_size, scales, tokens=False)


def _scales(*matrices: Float[Tensor, "..."]) -> Float[Tensor, " n"]:
    """For each matrix the power of two that brings its rows to a length of about one."""
    samples = [rows[:: -(-len(rows) // SAMPLE)] for rows in matrices]
    lengths = torch.stack([torch.linalg.vector_norm(sample) * len(sample) ** -0.5 for sample in samples])
    return torch.exp2(-lengths.clamp(min=2.0**-60).log2().round())


def _with_bound(
    rows: Float[Tensor, "N D"],
    bias: Float[Tensor, " N"],
    size: Float[Tensor, " N"],
    scales: Float[Tensor, " 2"],
    *,
    tokens: bool,
) -> Bounded:
    """Rows times a power of two, rounded, with the dimensions that hold the bound.

    `size` is how large the numbers are whose float32 rounding counts: norms of tokens before they were centred, the
    parts of a latent's bias. Of tokens `bias` does not matter.
    """
    (n, D), device = rows.shape, rows.device
    dtype = LOW.get(device.type, torch.float16)
    sums, hidden = CONFIDENCE * D**0.5 * torch.finfo(torch.float32).eps, HIDDEN * D**0.5
    low = torch.empty(n, -(-(D + 5) // MULTIPLE) * MULTIPLE, dtype=dtype, device=device)
    if (gpu := kernels_for(device)) is not None:
        return Bounded(low, gpu.bounded_rows(rows, low, bias, size, scales, sums, hidden, tokens=tokens))
    low[:, D + 5 :] = 0
    scale, product_scale = scales[0 if tokens else 1], scales.prod()
    norm, error = rows.new_empty(n), rows.new_empty(n)
    for part in slices(n, ROWS):
        scaled, rounded = rows[part] * scale, low[part, :D]
        rounded.copy_(scaled)
        norm[part] = torch.linalg.vector_norm(scaled, dim=1)
        error[part] = torch.linalg.vector_norm(scaled.sub_(rounded.float()), dim=1)
    error += hidden
    norm += error  # at least that of the rows, rounded or not
    if tokens:
        one = torch.ones_like(norm)
        bound = [*_rounded_up([error + sums * (norm + scale * size), norm], dtype), one]
        shift, largest = [one, one], norm
    else:
        bias = bias * product_scale
        high = bias.to(dtype).float()
        slack = sums * product_scale * size + (bias - high).abs() * torch.finfo(dtype).eps
        bound = _rounded_up([norm, error, slack], dtype)
        shift, largest = [high, bias - high], torch.maximum(norm, bias.abs())
    low[:, D : D + 5] = torch.stack([*bound, *shift], 1)
    return Bounded(low, torch.stack([*bound, largest], 1))


def _fits(tokens: Bounded, latents: Bounded) -> bool:
    """Whether all are numbers, none too large for its type, and the rows are as long as they should be, not all zero.

    A product of two rows is no larger than that of the sums of what bounds them.
    """
    sides = torch.stack([tokens.bound.amax(0), latents.bound.amax(0)]).tolist()
    long_enough = all(side[3] > 0.5 for side in sides)
    return long_enough and math.prod(map(sum, sides)) < torch.finfo(tokens.rows.dtype).max / 2


def _rounded_up(numbers: Sequence[Float[Tensor, " N"]], dtype: torch.dtype) -> list[Float[Tensor, " N"]]:
    """Positive numbers that are a `dtype` each, none smaller than it was."""
    info = torch.finfo(dtype)
    least = info.tiny * info.eps if dtype == torch.float16 else info.tiny  # below that a CPU takes bfloat16 for zero
    return [(number * (1 + info.eps) + least).to(dtype).float() for number in numbers]


def _products(tokens: Bounded, latents: Bounded, *, at_once: bool) -> Iterator[tuple[slice, Float[Tensor, "b F"]]]:
    """Yield the upper bounds of a chunk of tokens at a time; each chunk overwrites the last."""
    size = len(tokens.rows) if at_once else chunk_size(len(latents.rows), tokens.rows.device)
    buffer = tokens.rows.new_empty(min(size, len(tokens.rows)), len(latents.rows))
    with _full_sums():
        for chunk in slices(len(tokens.rows), size):
            some = tokens.rows[chunk]
            yield chunk, torch.mm(some, latents.rows.T, out=buffer[: len(some)])


@contextmanager
def _full_sums() -> Iterator[None]:
    """No part of a sum is to be rounded to float16 before the whole is added, which CUDA's library may do."""
    matmul = torch.backends.cuda.matmul
    before = {name: getattr(matmul, name) for name in ROUNDED_SUMS}
    try:
        for name in ROUNDED_SUMS:
            setattr(matmul, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)


def _signed(rule: Rule) -> bool:
    return isinstance(rule, Largest) and rule.signed


def _cut(
    rule: Rule, upper: Float[Tensor, "b F"], of_tokens: Float[Tensor, "b 4"], of_latents: Float[Tensor, "F 4"]
) -> Float[Tensor, "..."]:
    """What the upper bound of a pair that the rule keeps reaches at least: for all tokens, or for each, [b, 1]."""
    if isinstance(rule, Above):
        return upper.new_zeros(())
    if isinstance(rule, LargestOfBatch) and not 0 < rule.n < upper.numel():
        return upper.new_full((), -torch.inf if rule.n else torch.inf)
    info = torch.finfo(upper.dtype)
    per_token = rule.k if isinstance(rule, Largest) else -(-rule.n // len(upper))
    n = upper.shape[1]
    size = group_size(per_token, n)
    shape = (size, n // size)
    grouped = slice(0, shape[0] * shape[1])  # the k largest of some latents are no larger than those of all
    largest = upper[:, grouped].unflatten(1, shape).amax(1).float()
    width = of_latents[grouped, :3].unflatten(0, shape).amax(0)
    lower = torch.addmm(largest - info.eps / 2 * largest.abs(), of_tokens[:, :3], width.T, alpha=-2)
    if isinstance(rule, Largest):
        least = lower.topk(rule.k, dim=1, sorted=False).values.amin(1, keepdim=True)
        if rule.signed:
            least -= 2 * of_tokens[:, :3] @ of_latents[:, :3].amax(0)[:, None]
    else:
        least = lower.flatten().topk(rule.n, sorted=False).values.amin()
    return least.to(upper.dtype)  # what is no less is not rounded to less


def _reaching(upper: Float[Tensor, "b F"], cut: Float[Tensor, "..."]) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Token and latent of every pair whose upper bound reaches the cut, sorted."""
    if upper.device.type != "cpu" or upper.shape[1] % 8 or not (cut >= 0).all():
        return (upper >= cut).nonzero(as_tuple=True)  # type: ignore[return-value]
    # A CPU compares 16-bit floats slowly. From zero on they are ordered as the integers of the same bits are.
    reached = upper.view(torch.int16) >= cut.view(torch.int16)
    words = reached.view(torch.int64)  # eight latents at once: few words are not zero
    token, word = words.nonzero(as_tuple=True)
    which, latent = words[token, word].view(torch.bool).view(-1, 8).nonzero(as_tuple=True)
    return token[which], word[which] * 8 + latent


def _sparse(parts: Sequence[tuple[Tensor, ...]], n_tokens: int, n_latents: int) -> Sparse:
    token, latent = map(torch.cat, zip(*parts, strict=True))
    return Sparse(token, latent, n_tokens, n_latents)


def _settled(rule: Rule, pairs: Sparse, x: Tensor, W: Tensor, b_enc: Tensor) -> tuple[Sparse, Tensor]:
    """The candidates that the rule keeps, with their exact values."""
    z = pairs.inner_products(x, W) + b_enc[pairs.latent]
    if isinstance(rule, Largest) and (gpu := kernels_for(x.device)) is not None:
        kept = gpu.largest_of_each(rule.size(z), pairs.offsets, rule.k)
    else:
        kept = rule.settle(z, pairs).nonzero().squeeze(1)
    return Sparse(pairs.token[kept], pairs.latent[kept], pairs.n_tokens, pairs.n_latents), z[kept]


def _among(rule: Rule, x: Tensor, W: Tensor, b_enc: Tensor) -> tuple[Sparse, Tensor]:
    """What a rule about some latents keeps, from their columns of the product, in float32."""
    assert isinstance(rule, Largest)
    assert rule.among is not None
    rows, bias = W[rule.among], b_enc[rule.among]
    of_these = Largest(rule.k, torch.arange(len(rows), device=x.device), rule.signed)
    found = Found(len(x), len(rows), dense_above=1.0)
    for tokens in slices(len(x), chunk_size(len(rows), x.device)):
        z = torch.addmm(bias, x[tokens], rows.T)
        found.add(tokens, z, of_these(z))
    pairs, z = found.finish()
    assert isinstance(pairs, Sparse)
    return Sparse(pairs.token, rule.among[pairs.latent], len(x), len(W)), z
