"""Hooks that read, and replace, what passes the modules of a model."""

from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Literal, TypeVar

from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae_bench.errors import UserError

K = TypeVar("K", bound=Hashable)
Side = Literal["input", "output"]


def intercept(module: nn.Module, side: Side, see: Callable[[Any], Tensor | None]) -> RemovableHandle:
    """Call `see(x)` on what enters or leaves `module` at every forward pass; a tensor it returns takes the place of x.

    x is the first argument or the first output of the module, as it stands: not a copy. The hook is removed by the
    handle returned, which is a context manager.
    """

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            x_new = see(args[0])
            return None if x_new is None else ((x_new, *args[1:]), kwargs)
        if not kwargs:
            return None
        key = next(iter(kwargs))
        x_new = see(kwargs[key])
        return None if x_new is None else (args, {**kwargs, key: x_new})

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple | list):
            return see(output)
        x_new = see(output[0])
        return None if x_new is None else (x_new, *output[1:])

    if side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


class AllSeen(Exception):
    """Leaves a forward pass that has shown everything it was run for."""


def run_until_seen(
    model: nn.Module,
    tokens: Int[Tensor, "batch seq"],
    points: Mapping[K, tuple[nn.Module, Side]],
    *,
    copies: bool = False,
) -> dict[K, Tensor]:
    """Run `model` on `tokens` and return what passes each of `points`, leaving once the last of them has been seen.

    No key-value cache and no attention mask: every context is full. A point that is never passed is missing from the
    result; where a module has all contexts' tokens in a row, they are told apart again. Gradients are the caller's
    choice. Tensors are the model's own, unless it writes over one of them before the pass ends (Falcon adds attention
    to its MLP's output in place): then it runs again, and `copies` are returned.
    Raises UserError for a point that carries something else than a tensor.
    """
    seen: dict[K, Tensor] = {}
    versions: dict[K, int] = {}

    def see(key: K, x: Any) -> None:
        if not isinstance(x, Tensor):
            name, side = type(points[key][0]).__name__, points[key][1]
            raise UserError(f"the {side} of {name} is a {type(x).__name__}, not a tensor: name another module")
        seen[key] = by_context(x.clone() if copies else x, tokens)
        versions[key] = x._version
        if len(seen) == len(points):
            raise AllSeen

    with suppress(AllSeen), ExitStack() as hooks:
        for key, (module, side) in points.items():
            hooks.enter_context(intercept(module, side, partial(see, key)))
        model(input_ids=tokens, use_cache=False)
    if not copies and any(x._version != versions[key] for key, x in seen.items()):
        return run_until_seen(model, tokens, points, copies=True)
    return seen


def by_context(x: Tensor, tokens: Int[Tensor, "batch seq"]) -> Tensor:
    """Activations as (batch, seq, width), where a module had (batch seq, width)."""
    return x.reshape(*tokens.shape, -1) if x.ndim == 2 and len(x) == tokens.numel() else x
