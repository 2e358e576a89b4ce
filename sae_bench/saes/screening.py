"""Certified screening: the pairs that a rule keeps, without the encoder product in full precision.

Both factors of z = x W_enc + b are rounded to bfloat16 and multiplied. What the rounding can have done to a pair is
bounded (Cauchy-Schwarz), with x~ and w~ the rounded factors:

    |x . w - x~ . w~|  <=  ||x - x~|| ||w|| + ||x~|| ||w - w~|| + gamma ||x~|| ||w~||

gamma bounds the rounding of D additions in float32, in any order, twice: in this product and in the exact one. The
bound has low rank, so it is a few more input dimensions of the same product, rounded upwards: the product then is an
upper bound of z, and costs one pass. Pairs whose upper bound could pass are candidates; the exact float32 values of the
candidates alone are worked out, and the rule chooses among those. No pair is lost that float32 would have kept.

x is centred first, at b_dec or else at its mean: what all tokens share needs no room in the bound.

Shapes: B tokens, b of them in a chunk, D = d_in, F = d_sae, P pairs, K = D and the dimensions that hold the bound.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sae_bench.saes.chunks import chunk_size, slices
from sae_bench.saes.layouts import Sparse
from sae_bench.saes.rules import Above, Largest, LargestOfBatch, Rule
from sae_bench.saes.selection import Found

ROUND_UP = 1 + 2**-7
"""A positive number times this, rounded to bfloat16, is no less than it was."""

OUTPUT = 2**-8
"""What rounding a result to bfloat16 changes of it, at most."""

HIDDEN = 2.0**-62
"""What a number can be whose square underflows in float32."""

GROUPS = (16, 8, 4, 2, 1)
"""Latents that share one place when the k-th largest bound is looked for."""

MULTIPLE = 32
"""What the number of input dimensions is padded to a multiple of; matrix units like it so."""


@dataclass(frozen=True)
class Bounded:
    """Rows rounded to bfloat16 with the dimensions that hold the bound, and the bound's alone in float32."""

    rows: Float[Tensor, "N K"]
    bound: Float[Tensor, "N 3"]


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
    None also where bounds are not finite, or where two rules need products of their own.
    """
    whole = [rule for rule in rules if not (isinstance(rule, Largest) and rule.among is not None)]
    if len(whole) > 1 and any(isinstance(rule, Above) for rule in whole):
        return None
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in whole]
    if whole:
        tokens, latents = _bounded(x, W, b_enc, whole[0], centred)
        if not (tokens.bound.isfinite().all() and latents.bound.isfinite().all()):
            return None
        for chunk, upper in _products(tokens, latents, at_once=any(isinstance(r, LargestOfBatch) for r in whole)):
            for rule, pairs in zip(whole, found, strict=True):
                mask = _candidates(rule, upper, tokens.bound[chunk], latents.bound)
                token, latent = mask.nonzero(as_tuple=True)
                if chunk.start == 0 and len(token) > limit * mask.numel():
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
    """Tokens and latents whose product is an upper bound of z, or of z - threshold where the rule has one."""
    gamma = (x.shape[1] + 16) * 2.0**-22
    x_size = torch.zeros_like(x[:, 0])
    bias, bias_size = b_enc, b_enc.abs()
    if not centred:
        mean = x.mean(0)
        shift = W @ mean
        x_size = torch.linalg.vector_norm(x, dim=1) + torch.linalg.vector_norm(mean)
        x, bias, bias_size = x - mean, bias + shift, bias_size + shift.abs()
    if isinstance(rule, Above):
        theta = torch.as_tensor(rule.threshold, device=x.device)
        bias, bias_size = bias - theta, bias_size + theta.abs()
    x_low, x_norm, x_error = _rounded(x)
    W_low, W_norm, W_error = _rounded(W)
    x_error = x_error + gamma * (x_norm + x_size)
    high = bias.bfloat16()
    rest = bias - high.float()
    slack = gamma * bias_size + 2**-7 * rest.abs() + HIDDEN
    of_tokens = torch.stack([x_error, x_norm, torch.ones_like(x_norm) / ROUND_UP], 1).mul_(ROUND_UP).bfloat16()
    of_latents = torch.stack([W_norm, W_error, slack], 1).mul_(ROUND_UP).bfloat16()
    padding = (0, -(x.shape[1] + 5) % MULTIPLE)
    one = torch.ones_like(of_tokens[:, :2])
    tokens = functional.pad(torch.cat([x_low, of_tokens, one], 1), padding)
    latents = functional.pad(torch.cat([W_low, of_latents, high[:, None], rest[:, None].bfloat16()], 1), padding)
    return Bounded(tokens, of_tokens.float()), Bounded(latents, of_latents.float())


def _rounded(rows: Float[Tensor, "N D"]) -> tuple[Tensor, Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Rows in bfloat16, at least their norms, rounded or not, and at least the norms of what rounding took away."""
    low = rows.bfloat16()
    hidden = HIDDEN * rows.shape[1] ** 0.5
    error = torch.linalg.vector_norm(rows - low, dim=1) + hidden
    return low, torch.linalg.vector_norm(rows, dim=1) + error, error


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
    """Parts of a sum are not to be rounded to bfloat16 before they are added, which CUDA's library may do."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_bf16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction, False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def _candidates(
    rule: Rule, upper: Float[Tensor, "b F"], of_tokens: Float[Tensor, "b 3"], of_latents: Float[Tensor, "F 3"]
) -> Bool[Tensor, "b F"]:
    """Which pairs the rule could keep: those whose upper bound is no less than what is certainly kept."""
    if isinstance(rule, Above):
        return upper >= 0
    per_token = rule.k if isinstance(rule, Largest) else -(-rule.n // len(upper))
    n = upper.shape[1]
    size = next(size for size in GROUPS if size == 1 or n // size >= 4 * per_token)
    shape = (size, n // size)
    grouped = slice(0, shape[0] * shape[1])  # the k largest of some latents are no larger than those of all
    largest = upper[:, grouped].unflatten(1, shape).amax(1).float()
    width = of_latents[grouped].unflatten(0, shape).amax(0)
    lower = largest - OUTPUT * largest.abs() - 2 * (of_tokens @ width.T)
    if isinstance(rule, Largest):
        cut = lower.topk(rule.k, dim=1, sorted=False).values.amin(1, keepdim=True)
    else:
        cut = lower.flatten().topk(rule.n, sorted=False).values.amin()
    at_least: Tensor = cut - 2 * OUTPUT * cut.abs() - HIDDEN
    return upper >= at_least.bfloat16()


def _sparse(parts: Sequence[tuple[Tensor, ...]], n_tokens: int, n_latents: int) -> Sparse:
    token, latent = map(torch.cat, zip(*parts, strict=True))
    return Sparse(token, latent, n_tokens, n_latents)


def _settled(rule: Rule, pairs: Sparse, x: Tensor, W: Tensor, b_enc: Tensor) -> tuple[Sparse, Tensor]:
    """The candidates that the rule keeps, with their exact values."""
    z = pairs.inner_products(x, W) + b_enc[pairs.latent]
    kept = rule.settle(z, pairs)
    return Sparse(pairs.token[kept], pairs.latent[kept], pairs.n_tokens, pairs.n_latents), z[kept]


def _among(rule: Rule, x: Tensor, W: Tensor, b_enc: Tensor) -> tuple[Sparse, Tensor]:
    """What a rule about some latents keeps, from their columns of the product, in float32."""
    assert isinstance(rule, Largest)
    assert rule.among is not None
    rows, bias = W[rule.among], b_enc[rule.among]
    of_these = Largest(rule.k, torch.arange(len(rows), device=x.device))
    found = Found(len(x), len(rows), dense_above=1.0)
    for tokens in slices(len(x), chunk_size(len(rows), x.device)):
        z = torch.addmm(bias, x[tokens], rows.T)
        found.add(tokens, z, of_these(z))
    pairs, z = found.finish()
    assert isinstance(pairs, Sparse)
    return Sparse(pairs.token, rule.among[pairs.latent], len(x), len(W)), z
