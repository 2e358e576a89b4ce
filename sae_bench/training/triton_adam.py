"""One step of Adam for a matrix on a GPU, in one pass over its memory: projection, clipping, moments, step, norm.

Shapes: N rows, D columns.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _adam(  # type: ignore[no-untyped-def]
    W, grad, mean, square, numbers, lr, beta1, beta2, log_beta1, log_beta2, eps, n_in, unit_norm: tl.constexpr,
    n_columns: tl.constexpr,
):  # fmt: skip
    if tl.load(numbers + 2) > 0:  # whether the step may be taken
        n = tl.load(numbers)
        lr = lr / (1 - tl.exp2(n * log_beta1))
        root = tl.sqrt(1 - tl.exp2(n * log_beta2))
        at = tl.program_id(0).to(tl.int64) * n_in + tl.arange(0, n_columns)
        inside = tl.arange(0, n_columns) < n_in
        w = tl.load(W + at, mask=inside, other=0.0)
        g = tl.load(grad + at, mask=inside, other=0.0)
        if unit_norm:
            g -= tl.sum(g * w, axis=0) * w
        g *= tl.load(numbers + 1)
        m = tl.load(mean + at, mask=inside, other=0.0)
        m += (1 - beta1) * (g - m)
        v = tl.load(square + at, mask=inside, other=0.0)
        v = beta2 * v + (1 - beta2) * g * g
        w -= lr * m / (tl.sqrt(v) / root + eps)
        if unit_norm:
            w /= tl.sqrt(tl.sum(w * w, axis=0))
        tl.store(W + at, w, mask=inside)
        tl.store(mean + at, m, mask=inside)
        tl.store(square + at, v, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _square_norms(W, grad, out, n_in, unit_norm: tl.constexpr, n_columns: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = row * n_in + tl.arange(0, n_columns)
    inside = tl.arange(0, n_columns) < n_in
    g = tl.load(grad + at, mask=inside, other=0.0)
    if unit_norm:
        w = tl.load(W + at, mask=inside, other=0.0)
        g -= tl.sum(g * w, axis=0) * w
    tl.store(out + row, tl.sum(g * g, axis=0))


def gradient_norm(W: Float[Tensor, "N D"], *, unit_norm: bool) -> Float[Tensor, ""]:
    """The norm of the gradient, of what is left of it across the rows where these keep norm one."""
    rows, grad = _rows(W), _rows(W.grad).contiguous()
    squares = rows.new_empty(len(rows))
    _square_norms[(len(rows),)](rows, grad, squares, rows.shape[1], unit_norm, _columns(rows), num_warps=8)
    return squares.sum().sqrt()


def step(
    group: dict[str, Any],
    state: dict[str, Tensor],
    factor: Float[Tensor, ""],
    usable: Float[Tensor, ""],
    *,
    unit_norm: bool,
) -> None:
    """What torch's Adam would do to the matrix of `group` with its gradient times `factor`, if `usable` is one.

    With `unit_norm` without the gradient's part along each row, which is brought back to norm one.
    """
    (W,) = group["params"]
    if not state:
        state["step"] = torch.zeros((), device=W.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(W), torch.zeros_like(W)
    state["step"] += usable
    beta1, beta2 = group["betas"]
    numbers = torch.stack([state["step"], factor, usable])
    rows, grad = _rows(W), _rows(W.grad).contiguous()
    moments = _rows(state["exp_avg"]), _rows(state["exp_avg_sq"])
    logs = math.log2(beta1) if beta1 > 0 else -math.inf, math.log2(beta2)
    constants = group["lr"], beta1, beta2, *logs, group["eps"]
    shape = rows.shape[1], unit_norm, _columns(rows)
    _adam[(len(rows),)](rows, grad, *moments, numbers, *constants, *shape, num_warps=8)
    W.grad = None


def _rows(W: Tensor | None) -> Float[Tensor, "N D"]:
    """The matrix, as rows that are stored one after the other."""
    assert W is not None
    return W.detach() if W.is_contiguous() else W.detach().T


def _columns(rows: Tensor) -> int:
    columns: int = triton.next_power_of_2(rows.shape[1])
    return columns
