"""Where in a language model an SAE sits: the named sites, the modules behind them, and the hook that reads them.

A site is one module and one side of it: "what `model.layers.9` returns", "what goes into `self_attn.o_proj`". The
short names `resid_post`, `mlp_out` and `attn_out` follow Gemma Scope (arXiv 2408.05147), `resid_pre`, `resid_mid` and
`attn_add` are TransformerLens's hook_resid_pre, hook_resid_mid and hook_attn_out; each means a different module in each
family of models. A family is known by its structure - which modules exist - and not by its name, so a new model
built like Llama needs no line here. One that is built like none of them needs one `register_family`, in a plugin file;
its modules are reached with `path:MODULE` too.

The wrong module loads silently and reconstructs badly. So the width of a site is never guessed from a configuration:
it is measured once, by two tokens that run through the model as far as the site, and checked at every capture.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.hooks import RemovableHandle

from sae_bench.errors import UserError, did_you_mean
from sae_bench.records.schema import SAEDescription
from sae_bench.registry import REGISTERED

K = TypeVar("K", bound=Hashable)
Side = Literal["input", "output"]
SITE_KINDS = ("resid_post", "mlp_out", "attn_out")
KINDS = (*SITE_KINDS, "attn_add", "resid_pre", "resid_mid")
ADDITIVE = ("resid_post", "mlp_out", "attn_add", "resid_pre", "resid_mid")
"""Kinds that are the residual stream, or what is added to it."""

MIDDLES = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "mlp")
"""Modules of a layer whose input may be the residual stream between attention and MLP: a probe shows whose is."""


@dataclass(frozen=True)
class Site:
    """One side of one module of a language model, where activations of width `d_in` are read and replaced.

    `layer` counts decoder layers from 0, `kind` is one of `KINDS` or the `path:...` that the user gave, and `path`
    is the module's name in `model.named_modules()`.
    """

    layer: int
    kind: str
    path: str
    side: Side
    d_in: int
    centred: bool = False
    """Activations less their mean over the `d_in` dimensions: what TransformerLens's `center_writing_weights` leaves of
    the residual stream, and of what is added to it, where every LayerNorm takes that mean off anyway."""

    @property
    def name(self) -> str:
        """A name that is safe for folders: `layer_9.resid_post`, or `path.model.layers.9.mlp.input`."""
        centred = ".centred" if self.centred else ""
        if self.kind in KINDS:
            return f"layer_{self.layer}.{self.kind}{centred}"
        return f"path.{self.path}" + (".input" if self.side == "input" else "") + centred

    def seen(self, x: Tensor) -> Tensor:
        """What an SAE at the site is given of the activations that pass there."""
        return x - x.mean(-1, keepdim=True) if self.centred else x


@dataclass(frozen=True)
class Family:
    """Module names shared by models that are built alike; `mlp_out` and `attn_out` are relative to a decoder layer.

    `layers` holds the decoder layers, whose outputs are `resid_post`, and the LM head sees what `final_norm` returns.
    """

    layers: str
    final_norm: str
    mlp_out: str
    """Its output is what the MLP adds to the residual stream."""
    attn_out: str
    """Its input is the concatenated head outputs, before the output projection."""
    attn_add: str = ""
    """Its output is what attention adds to the residual stream. Empty: the attention module, which holds `attn_out`."""


# The first family whose modules all exist is the model's. Gemma stands before Llama, for it has every module that Llama
# has and a norm more: what Gemma's MLP adds to the residual has gone through that norm.
FAMILIES = [
    # Gemma 2, Gemma 3, OLMo 2
    Family("model.layers", "model.norm", "post_feedforward_layernorm", "self_attn.o_proj", "post_attention_layernorm"),
    Family("model.layers", "model.norm", "mlp", "self_attn.o_proj"),  # Llama, Qwen, Mistral, SmolLM
    Family("gpt_neox.layers", "gpt_neox.final_layer_norm", "mlp", "attention.dense"),  # GPT-NeoX: Pythia
    Family("transformer.h", "transformer.ln_f", "mlp", "attn.c_proj"),  # GPT-2
]


def register_family(family: Family) -> None:
    """Give the models that are built so their sites. It stands before all that were known: one may refine another."""
    FAMILIES.insert(0, family)
    REGISTERED.append(f"family {family.layers}")


def find_family(model: nn.Module) -> Family | None:
    """Return the family that `model` is built like, or None for a structure that nobody has registered."""
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}

    def fits(family: Family) -> bool:
        first = f"{family.layers}.0"
        return {family.final_norm, f"{first}.{family.mlp_out}", f"{first}.{family.attn_out}"} <= modules

    return next(filter(fits, FAMILIES), None)


@dataclass(frozen=True, eq=False)
class Backbone:
    """What a model runs from its first decoder layer to its LM head."""

    layers_path: str
    layers: list[nn.Module]
    final_norm: nn.Module


def find_backbone(model: nn.Module) -> Backbone | None:
    """Return the decoder layers of `model` and the norm after them, or None for a model of unknown structure."""
    family = find_family(model)
    if family is None:
        return None
    layers = list(model.get_submodule(family.layers).children())
    return Backbone(family.layers, layers, model.get_submodule(family.final_norm))


def find_site(model: nn.Module, kind: str, layer: int) -> Site:
    """Find the site `kind` of decoder layer `layer` (from 0) and measure its width.

    `kind` is one of `KINDS`, or `path:MODULE` for the output of any module, `path:MODULE@input`
    for its input. MODULE is a name in `model.named_modules()` and may contain `{layer}`; where it names a numbered
    layer of its own, that number is the site's layer and `layer` is not used.

    Runs two tokens through the model, as far as the site. Raises UserError for an unknown kind, layer or module, for a
    model of unknown structure, and for a module that does not carry one activation vector per token.
    """
    side: Side
    if kind.startswith("path:"):
        path, _, suffix = kind.removeprefix("path:").replace("{layer}", str(layer)).partition("@")
        if suffix not in ("", "input", "output"):
            raise UserError(f'site "{kind}": after @ comes input or output, not "{suffix}"')
        side = "input" if suffix == "input" else "output"
        numbers = re.findall(r"(?<=\.)\d+(?=\.|$)", path)
        layer = int(numbers[0]) if numbers else layer
    else:
        path, side = _named_module(model, kind, layer)
    _check_module(model, kind, path)
    return Site(layer, kind, path, side, _measure_width(model, kind, path, side))


def find_sites(model: nn.Module, kinds: Iterable[str], layers: Iterable[int]) -> list[Site]:
    """Find every kind of site in every layer, each once: a `path:` without {layer} is the same one for every layer."""
    return list(dict.fromkeys(find_site(model, kind, layer) for layer, kind in product(layers, kinds)))


def site_of(description: SAEDescription) -> Site:
    """The site of an SAE as its description has it."""
    return Site(**description.site.model_dump(exclude={"name"}))


def _named_module(model: nn.Module, kind: str, layer: int) -> tuple[str, Side]:
    """Return the module and the side that one of `KINDS` stands for."""
    if kind not in KINDS:
        raise UserError(f'unknown site "{kind}"{did_you_mean(kind, (*KINDS, "path:MODULE"))}')
    family, name = find_family(model), type(model).__name__
    if family is None:
        raise UserError(f"{name}: no known place for {kind} in this kind of model: name one with --site path:MODULE")
    n_layers = len(list(model.get_submodule(family.layers).children()))
    if not 0 <= layer < n_layers:
        raise UserError(f"layer {layer}: {name} has layers 0..{n_layers - 1}; choose one of them")
    block = f"{family.layers}.{layer}"
    if kind == "resid_mid":
        return _middle(model, block, f"{block}.{_sides(family)['attn_add'][0]}"), "input"
    if kind == "attn_add":
        _check_sum(model, family, block)
    module, side = _sides(family)[kind]
    return f"{block}.{module}".removesuffix("."), side


def _sides(family: Family) -> dict[str, tuple[str, Side]]:
    """Module within a decoder layer, empty for the layer itself, and side of the sites that a family names."""
    return {
        "resid_post": ("", "output"), "resid_pre": ("", "input"), "mlp_out": (family.mlp_out, "output"),
        "attn_out": (family.attn_out, "input"),
        "attn_add": (family.attn_add or family.attn_out.rpartition(".")[0], "output"),
    }  # fmt: skip


def kind_of(model: nn.Module, path: str, side: Side) -> str | None:
    """Which of `KINDS` one side of a module is in its layer; None for none, and for resid_mid."""
    family = find_family(model)
    match = family and re.fullmatch(rf"{re.escape(family.layers)}\.\d+(?:\.(.+))?", path)
    sides = _sides(family).items() if family and match else ()
    return next((kind for kind, place in sides if match and place == (match[1] or "", side)), None)


def _check_sum(model: nn.Module, family: Family, block: str) -> None:
    """Raise UserError unless a layer returns its input plus what its attention and its MLP are known to add."""
    sides = _sides(family).items()
    seen = _probe(model, {kind: (model.get_submodule(f"{block}.{at}".removesuffix(".")), side)
                          for kind, (at, side) in sides if kind != "attn_out"})  # fmt: skip
    total = seen["resid_pre"] + seen["attn_add"] + seen["mlp_out"]
    if not isinstance(total, FakeTensor) and not _close(total, seen["resid_post"]):
        raise UserError(f"{type(model).__name__}: {block} does not return its input plus attention plus MLP, so which "
                        "module is attn_add is not known: name one with --site path:MODULE")  # fmt: skip


def _middle(model: nn.Module, block: str, attn_add: str) -> str:
    """The module of a decoder layer whose input is what enters the layer plus what its attention adds."""
    children = dict(model.get_submodule(block).named_children())
    points: dict[str, tuple[nn.Module, Side]] = {
        "enters": (model.get_submodule(block), "input"), "added": (model.get_submodule(attn_add), "output"),
        **{name: (children[name], "input") for name in MIDDLES if name in children},
    }  # fmt: skip
    seen = _probe(model, points)
    wanted = seen["enters"] + seen["added"]
    for name in MIDDLES:
        # Fake tensors, as in a dry run, have no numbers to compare.
        if name in seen and (isinstance(wanted, FakeTensor) or _close(seen[name], wanted)):
            return f"{block}.{name}"
    raise UserError(f"{type(model).__name__}: no module of {block} is given its input plus attention, which may work "
                    "in parallel to the MLP: there is no resid_mid; choose another site")  # fmt: skip


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= 8 * torch.finfo(b.dtype).eps * b.norm())


def _probe(model: nn.Module, points: Mapping[K, tuple[nn.Module, Side]], n: int = 8) -> dict[K, Tensor]:
    """What passes some points when a few tokens run through the model; one alone may be padding, embedded as zeros."""
    tokens = torch.arange(n, device=next(model.parameters()).device)[None]
    with torch.no_grad():
        return run_until_seen(model, tokens, points)


def _check_module(model: nn.Module, kind: str, path: str) -> None:
    """Raise UserError unless `path` names a module; the message lists what exists one step short of the mistake."""
    parent, at = model, ""
    for part in path.split("."):
        children = dict(parent.named_children())
        if part not in children:
            where = at or type(model).__name__
            raise UserError(f'site "{kind}": {where} has no module "{part}"{did_you_mean(part, children)}')
        parent, at = children[part], f"{at}.{part}".strip(".")


def _measure_width(model: nn.Module, kind: str, path: str, side: Side) -> int:
    """Return the width of the activations on one side of a module, as two tokens see them."""
    seen = _probe(model, {path: (model.get_submodule(path), side)}, n=2)
    if path not in seen:
        raise UserError(f'site "{kind}": {path} takes no part in a forward pass: name another module')
    x = seen[path]
    if x.shape[:-1] != (1, 2):
        shape = tuple(x.shape)
        raise UserError(f'site "{kind}": the {side} of {path} has shape {shape} for two tokens, not (1, 2, width)')
    return x.shape[-1]


def intercept(module: nn.Module, side: Side, see: Callable[[Any], Tensor | None]) -> RemovableHandle:
    """Call `see(x)` on what enters or leaves `module` at every forward pass; a tensor it returns takes the place of x.

    x is the first argument or the first output of the module, as it stands: not a copy. The hook is removed by the
    handle returned, which is a context manager.
    """

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            x_new = see(args[0])
            return None if x_new is None else ((x_new, *args[1:]), kwargs)
        key = next(iter(kwargs))
        x_new = see(kwargs[key])
        return None if x_new is None else (args, {**kwargs, key: x_new})

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple):
            return see(output)
        x_new = see(output[0])
        return None if x_new is None else (x_new, *output[1:])

    if side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


class _AllSeen(Exception):
    """Leaves a forward pass that has shown everything it was run for."""


def run_until_seen(
    model: nn.Module, tokens: Int[Tensor, "batch seq"], points: Mapping[K, tuple[nn.Module, Side]]
) -> dict[K, Tensor]:
    """Run `model` on `tokens` and return what passes each of `points`, leaving once the last of them has been seen.

    No key-value cache and no attention mask: every context is full. A point that is never passed is missing from the
    result. Gradients are the caller's choice. Raises UserError for a point that carries something else than a tensor.
    """
    seen: dict[K, Tensor] = {}

    def see(key: K, x: Any) -> None:
        if not isinstance(x, Tensor):
            name, side = type(points[key][0]).__name__, points[key][1]
            raise UserError(f"the {side} of {name} is a {type(x).__name__}, not a tensor: name another module")
        seen[key] = x
        if len(seen) == len(points):
            raise _AllSeen

    with suppress(_AllSeen), ExitStack() as hooks:
        for key, (module, side) in points.items():
            hooks.enter_context(intercept(module, side, partial(see, key)))
        model(input_ids=tokens, use_cache=False)
    return seen
