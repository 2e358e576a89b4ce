"""loss.backward() without torch's engine, which refuses a CUDA device in a process that has none.

The graph and the rules of its nodes are torch's own; only the order of calls is ours.
"""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """Call every node of the graph behind a scalar, those that depend on others after them; add up `.grad`."""
    waiting: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
    for node in _from_the_loss_down(loss.grad_fn):
        given = waiting.pop(node, None)
        if given is None:
            continue
        if hasattr(node, "variable"):  # a leaf
            (grad,) = given
            node.variable.grad = grad if node.variable.grad is None else node.variable.grad + grad
            continue
        followers = node.next_functions
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            # It answers for every argument of its forward, and is followed up for the tensors among them.
            results = _as_tuple(node.apply(*given))
            results = tuple(grad for grad, needed in zip(results, node.needs_input_grad, strict=True) if needed)
            followers = tuple(follower for follower in followers if follower[0] is not None)
        else:
            results = _as_tuple(node(*given))
        for (following, place), grad in zip(followers, results, strict=True):
            if following is None or grad is None:
                continue
            grad = grad.sum_to_size(following._input_metadata[place].shape)  # where the forward pass broadcast
            places = waiting.setdefault(following, [])
            places += [None] * (place + 1 - len(places))
            places[place] = grad if places[place] is None else places[place] + grad


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _from_the_loss_down(root: Any) -> list[Any]:
    order: list[Any] = []
    seen = set()

    def visit(node: Any) -> None:
        if node in seen:
            return
        seen.add(node)
        for following, _ in node.next_functions:
            if following is not None:
                visit(following)
        order.append(node)

    visit(root)
    return order[::-1]
