"""Active-set linear algebra: the few (token, latent) pairs that matter, and products over them alone.

A sparse autoencoder uses 20-100 of its thousands of latents on a token. Only the encoder product `z = x W_enc` has to
touch them all; everything after it - nonlinearity, penalty, decoder, every gradient - lives on the active pairs:

    z = select(x, W_enc, b_enc, keep)       # which pairs are active, and their pre-activations
    f = z.with_values(relu(z.values))       # elementwise maths on the pairs
    x_hat = decode(f, W_dec, b_dec)         # sparse times dense

The two functions carry gradients for the pairs only, and work through the tokens in chunks, so the [B, F] matrix never
exists whole. When the set is not sparse (an untrained ReLU has half of everything active) it is kept as that matrix
and a mask, and the same functions use dense products; a plugin never knows. Values and gradients equal the dense
formulation.

`values` may hold padding besides the active pairs (`layouts` says when), so sums over the active are taken by
`sum_per_token` and its kin, never by `values.sum()`.

Where the rule is one of `rules`, and `kernels` say so, even the encoder product is in full precision for few pairs
alone, which `screening` finds.

Shapes: B tokens, D = d_in, F = d_sae, V the shape of values. W_enc is [D, F] by meaning and stored latent by latent
(its transpose is contiguous), so that the gradient of a latent's weights is one contiguous row; see `latent_major`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.saes.chunks import chunk_size, slices
from sae_bench.saes.kernels import chosen
from sae_bench.saes.layouts import Dense, Layout, Sparse
from sae_bench.saes.rules import Largest, LargestOfBatch, Rule
from sae_bench.saes.screening import screened
from sae_bench.saes.selection import Found

KeepRule = Callable[[Tensor], Tensor]
"""Maps pre-activations [b, F] of some tokens to what to keep: a boolean mask [b, F], or latents' indices [b, k]."""


@dataclass(frozen=True)
class Active:
    """Values on the active pairs of a batch: pre-activations as `select` returns them, or latents' activations f."""

    layout: Layout
    values: Float[Tensor, "*V"]
    clean: bool = False
    """Whether padding among the values is zero, as `select` leaves it."""

    @property
    def is_dense(self) -> bool:
        """Whether dense products work on it."""
        return isinstance(self.layout, Dense)

    @property
    def n_tokens(self) -> int:
        return self.layout.n_tokens

    def with_values(self, values: Float[Tensor, "..."], *, zero_at_zero: bool = False) -> "Active":
        """The same pairs with other values; `zero_at_zero` promises that where ours are zero the others are too."""
        return Active(self.layout, self.layout.fill(values), self.clean and zero_at_zero)

    def per_latent(self, parameter: Float[Tensor, " F"]) -> Float[Tensor, "..."]:
        """Look up a per-latent parameter (a threshold, a norm) for every pair; differentiable."""
        return self.layout.per_latent(parameter)

    def sum_per_token(self, values: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Sum of `values` over the active latents, mean over ALL tokens of the batch (those without any included)."""
        return self.layout.total(values) / self.n_tokens

    def sum_of_each_token(self, values: Float[Tensor, "..."]) -> Float[Tensor, " B"]:
        """Sum of `values` over the active latents of each token, for losses that are not linear in it; differentiable.

        Its mean is `sum_per_token`.
        """
        return self.layout.total_per_token(values)

    def mean_per_latent(self) -> Float[Tensor, " F"]:
        """Mean of each latent's values over ALL tokens of the batch; differentiable.

        For penalties that weigh latents: on large sets, cheaper than `sum_per_token` of values times weights. Their
        gradient is cheapest where they are computed before the decoder's product.
        """
        return self.layout.total_per_latent(self.values, clean=self.clean) / self.n_tokens

    def active_per_token(self) -> Int[Tensor, " B"]:
        """Number of values on each token that are not zero."""
        return self.layout.per_token(self.values.detach() != 0)

    def least_positive(self) -> Float[Tensor, ""]:
        """The smallest value above zero; infinite where there is none."""
        values = (self.values if self.clean else self.pairs()[2]).detach()
        positive = torch.where(values > 0, values, torch.inf)
        return positive.amin() if positive.numel() else positive.new_full((), torch.inf)

    def count_per_latent(
        self, group: Int[Tensor, " B"] | None = None, n_groups: int = 1
    ) -> Float[Tensor, "n_groups F"]:
        """On how many tokens of each group (default: one group) each latent's value is not zero."""
        return self.layout.by_group(self.values.detach() != 0, group, n_groups)

    def pairs(self) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"], Float[Tensor, " P"]]:
        """Token, latent and value of every active pair, sorted by token; no padding among them."""
        token, latent, index = self.layout.pairs()
        return token, latent, self.values[index]

    def to_dense(self) -> Float[Tensor, "B F"]:
        """The [B, F] matrix, zero where inactive; for tests and small inputs."""
        token, latent, values = self.pairs()
        return values.new_zeros(self.n_tokens, self.layout.n_latents).index_put((token, latent), values)


Latents = Active | Tensor
"""Latents' activations f: an active set, or a plain [B, F] tensor from an architecture written densely.

A latent is active where f is not zero; most architectures have f >= 0.
"""


def as_active(f: Latents) -> Active:
    """What `encode` returns, as an active set: the one place where the harness tells the two apart."""
    if isinstance(f, Active):
        return f
    # With a graph a zero counts as a place too, for it may have a gradient: a straight-through estimator's.
    mask = torch.ones_like(f, dtype=torch.bool) if f.requires_grad else f != 0
    return Active(Dense(mask), f, clean=True)


def select(
    x: Float[Tensor, "B D"],
    W_enc: Float[Tensor, "D F"],
    b_enc: Float[Tensor, " F"],
    keep: KeepRule,
    b_pre: Float[Tensor, " D"] | None = None,
) -> Active:
    """Return z = (x - b_pre) W_enc + b_enc on the pairs that `keep` selects.

    `b_pre` is the pre-encoder bias, if the architecture has one. Gradients flow to x, W_enc, b_enc and b_pre from the
    selected pairs alone; `keep` itself is not differentiated.
    """
    return select_all(x, W_enc, b_enc, (keep,), b_pre)[0]


def select_all(
    x: Float[Tensor, "B D"],
    W_enc: Float[Tensor, "D F"],
    b_enc: Float[Tensor, " F"],
    keeps: Sequence[KeepRule],
    b_pre: Float[Tensor, " D"] | None = None,
) -> tuple[Active, ...]:
    """`select` with several rules at once: one encoder product, one active set for each rule."""
    out = _apply(_Select, x, W_enc, b_enc, b_pre, keeps)
    return tuple(Active(layout, z, clean=True) for layout, z in zip(out[: len(keeps)], out[len(keeps) :], strict=True))


def decode(f: Active, W_dec: Float[Tensor, "F D"], b_dec: Float[Tensor, " D"] | None = None) -> Float[Tensor, "B D"]:
    """Return x_hat = f W_dec + b_dec (without b_dec when None), with gradients to f, W_dec and b_dec."""
    product: Tensor = _apply(_Decode, f.values, W_dec, f.layout, f.clean)
    return product if b_dec is None else product + b_dec


def decode_groups(f: Active, W_dec: Float[Tensor, "F D"], sizes: Sequence[int]) -> Float[Tensor, "B G D"]:
    """What each of G groups of latents adds to f W_dec, at the cost of one product; gradients to f and W_dec.

    A group is a run of so many latents; together they are all. Sums over the first groups are
    `decode_groups(...).cumsum(1)`.
    """
    if isinstance(f.layout, Dense):
        groups = zip(f.layout.mask.split(sizes, 1), f.values.split(sizes, 1), W_dec.split(sizes), strict=True)
        return torch.stack([decode(Active(Dense(mask), values, f.clean), W) for mask, values, W in groups], 1)
    layout, order = f.layout.grouped(sizes)
    return decode(Active(layout, f.values[order], f.clean), W_dec).view(f.n_tokens, len(sizes), -1)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # shapes here depend on the data
def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)


def summed(latents: Int[Tensor, "B k"], values: Float[Tensor, "B k"], n_latents: int) -> Active:
    """Each token's values on its latents, of which one that comes more than once gets their sum; differentiable."""
    n_tokens, k = latents.shape
    if k > chosen().dense_above * n_latents:
        mask = torch.zeros(n_tokens, n_latents, dtype=torch.bool, device=values.device).scatter_(1, latents, True)
        return Active(Dense(mask), values.new_zeros(mask.shape).scatter_add(1, latents, values), clean=True)
    place = latents + n_latents * torch.arange(n_tokens, device=latents.device)[:, None]
    pair, index = place.flatten().unique(return_inverse=True)
    layout = Sparse(pair // n_latents, pair % n_latents, n_tokens, n_latents)
    return Active(layout, values.new_zeros(len(pair)).index_add(0, index, values.flatten()), clean=True)


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None, keeps: Sequence[KeepRule]
    ) -> tuple[Any, ...]:
        centred = x if b_pre is None else x - b_pre
        found = _screened(centred, W_enc, b_enc, keeps, b_pre is not None) or _selected(centred, W_enc, b_enc, keeps)
        layouts, values = zip(*found, strict=True)
        ctx.save_for_backward(centred, W_enc)
        ctx.layouts = layouts
        return *layouts, *values

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        centred, W_enc = ctx.saved_tensors
        needs_x, needs_W, _, needs_pre, _ = ctx.needs_input_grad
        dx = dW_enc = db_enc = None
        for layout, dz in zip(ctx.layouts, grads[len(ctx.layouts) :], strict=True):
            dz = dz.contiguous()  # padding gets no gradient: clean
            db_enc = _add(db_enc, layout.sums(dz))
            dW_enc = _add(dW_enc, layout.rows_transposed(dz, centred, clean=True).T) if needs_W else None
            dx = _add(dx, layout.rows(dz, W_enc.T, clean=True)) if needs_x else None
        # Every token subtracts the same b_pre, so its gradient needs only the sums over tokens.
        db_pre = -(W_enc @ db_enc) if needs_pre else None
        return dx, dW_enc, db_enc, db_pre, None


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, W_dec: Tensor, layout: Layout, clean: bool) -> Tensor:
        ctx.save_for_backward(f, W_dec)
        ctx.layout, ctx.clean = layout, clean
        return layout.rows(f, W_dec, clean=clean)

    @staticmethod
    def backward(ctx: Any, dx_hat: Tensor) -> tuple[Tensor | None, ...]:
        f, W_dec = ctx.saved_tensors
        dx_hat = dx_hat.contiguous()
        needs_f, needs_W, *_ = ctx.needs_input_grad
        return (
            ctx.layout.inner_products(dx_hat, W_dec) if needs_f else None,
            ctx.layout.rows_transposed(f, dx_hat, clean=ctx.clean) if needs_W else None,
            None,
            None,
        )


def _screened(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, keeps: Sequence[KeepRule], centred: bool
) -> Sequence[tuple[Layout, Tensor]] | None:
    """What the rules keep, by screening; None where that is not wanted, not possible, or not faster."""
    dense_above, screen_below = chosen()
    rules = [keep for keep in keeps if isinstance(keep, Rule)]
    limit = min(dense_above, screen_below)
    if limit <= 0 or len(rules) < len(keeps) or x.dtype != torch.float32:
        return None
    if any(isinstance(rule, Largest) and rule.k > dense_above * W_enc.shape[1] for rule in rules):
        return None
    return screened(x, W_enc.T, b_enc, rules, limit, centred=centred)


def _selected(x: Tensor, W_enc: Tensor, b_enc: Tensor, keeps: Sequence[KeepRule]) -> Sequence[tuple[Layout, Tensor]]:
    """What the rules keep of the whole encoder product, a chunk of tokens at a time; each chunk overwrites the last."""
    found = [Found(len(x), W_enc.shape[1], chosen().dense_above) for _ in keeps]
    at_once = any(isinstance(keep, LargestOfBatch) for keep in keeps)
    size = len(x) if at_once else min(chunk_size(W_enc.shape[1], x.device), len(x))
    buffer = x.new_empty(size, W_enc.shape[1])
    for tokens in slices(len(x), size):
        some = x[tokens]
        z = torch.addmm(b_enc, some, W_enc, out=buffer[: len(some)])
        for keep, kept in zip(keeps, found, strict=True):
            kept.add(tokens, z, keep(z))
    return [kept.finish() for kept in found]


def latent_major(W: Float[Tensor, "D F"]) -> Float[Tensor, "D F"]:
    """A copy of the matrix, stored latent by latent."""
    return W.T.clone(memory_format=torch.contiguous_format).T
