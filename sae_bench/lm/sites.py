"""Where in a language model an SAE sits: the named sites, and the modules behind them.

A site is one module and one side of it: "what `model.layers.9` returns", "what goes into `self_attn.o_proj`". The
short names `resid_post`, `mlp_out` and `attn_out` follow Gemma Scope (arXiv 2408.05147), `resid_pre`, `resid_mid` and
`attn_add` are TransformerLens's hook_resid_pre, hook_resid_mid and hook_attn_out; each means a different module in each
family of models (`families`). What a layer is given and returns is found in every model; one of no known family needs a
`register_family`, in a plugin file, for the others, and its modules are reached with `path:MODULE` too.

The wrong module loads silently and reconstructs badly. So nothing is believed: that `mlp_out` and `attn_out` are what
the residual stream gains is seen by arithmetic, and the width of a site is measured, not read in a configuration, by a
few tokens that run through the model as far as the site; it is checked at every capture.
"""

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sae_bench.errors import UserError, did_you_mean
from sae_bench.lm.families import find_family
from sae_bench.lm.hooks import Side, run_until_seen
from sae_bench.lm.layers import Adding, adding_modules, find_backbone, modules_to_name, traffic
from sae_bench.records.schema import SAEDescription

SITE_KINDS = ("resid_post", "mlp_out", "attn_out")
KINDS = (*SITE_KINDS, "attn_add", "resid_pre", "resid_mid")
ADDITIVE = ("resid_post", "mlp_out", "attn_add", "resid_pre", "resid_mid")
"""Kinds that are the residual stream, or what is added to it."""


@dataclass(frozen=True)
class Site:
    """One side of one module of a language model, where activations of width `d_in` are read and replaced.

    `layer` counts decoder layers from 0, `kind` is one of `KINDS` or the `path:...` that the user gave, and `path`
    is the module's name in `model.named_modules()`; the two are one name where there is no language model.
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
        if self.kind == self.path:
            return self.kind  # no module of a language model
        centred = ".centred" if self.centred else ""
        if self.kind in KINDS:
            return f"layer_{self.layer}.{self.kind}{centred}"
        return f"path.{self.path}" + (".input" if self.side == "input" else "") + centred

    def seen(self, x: Tensor) -> Tensor:
        """What an SAE at the site is given of the activations that pass there."""
        return x - x.mean(-1, keepdim=True) if self.centred else x


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
    """Find every kind of site in every layer, each once: a `path:` without {layer} is the same one for every layer.

    A dry run's tensors have no values in which layers could differ, and passes of them are slow: of its layers that are
    built alike it looks into the first.
    """
    planned = isinstance(next(model.parameters()), FakeTensor)
    first = _first_alike(model) if planned else {}
    found: dict[tuple[str, int], Site] = {}

    def at(kind: str, layer: int) -> Site:
        if (kind, layer) not in found:
            found[kind, layer] = find_site(model, kind, layer)
        return found[kind, layer]

    def moved(kind: str, layer: int) -> Site:
        named = kind in KINDS or "{layer}" in kind
        if not named or layer not in first:
            return at(kind, layer)
        block, other = first[layer]
        site = at(kind, other)
        inside = f"{site.path}.".removeprefix(f"{block}.{other}.")
        if inside == f"{site.path}.":  # not within a decoder layer
            return at(kind, layer)
        return replace(site, layer=layer, path=f"{block}.{layer}.{inside}".rstrip("."))

    return list(dict.fromkeys(moved(kind, layer) for layer, kind in product(layers, kinds)))


def _first_alike(model: nn.Module) -> dict[int, tuple[str, int]]:
    """For each decoder layer, the path of the list that it is in, and the first layer of that list built like it."""
    backbone = find_backbone(model)
    if backbone is None:
        return {}
    seen: dict[Hashable, int] = {}
    firsts = [seen.setdefault(_structure(layer), number) for number, layer in enumerate(backbone.layers)]
    return {number: (backbone.layers_path, first) for number, first in enumerate(firsts)}


def _structure(layer: nn.Module) -> Hashable:
    """What two layers have to have in common to be built alike: their modules, and the shapes of their weights."""
    modules = tuple((name, type(module)) for name, module in layer.named_modules())
    return modules, tuple((name, tuple(weight.shape)) for name, weight in layer.named_parameters())


def site_of(description: SAEDescription) -> Site:
    """The site of an SAE as its description has it."""
    return Site(**description.site.model_dump(exclude={"name"}))


def _named_module(model: nn.Module, kind: str, layer: int) -> tuple[str, Side]:
    """Return the module and the side that one of `KINDS` stands for."""
    if kind not in KINDS:
        raise UserError(f'unknown site "{kind}"{did_you_mean(kind, (*KINDS, "path:MODULE"))}')
    backbone, name = find_backbone(model), type(model).__name__
    if backbone is None:
        raise UserError(f"{name}: no known place for {kind} in this kind of model: {_remedy(model)}")
    n_layers = len(backbone.layers)
    if not 0 <= layer < n_layers:
        raise UserError(f"layer {layer}: {name} has layers 0..{n_layers - 1}; choose one of them")
    block = f"{backbone.layers_path}.{layer}"
    if kind in ("resid_post", "resid_pre"):
        return block, "output" if kind == "resid_post" else "input"
    family = find_family(model, layer)
    if family is None:
        raise UserError(f"{name}: no known place for {kind} in {block}: {_remedy(model)}")
    adding = adding_modules(model, layer, family)
    if kind == "attn_out":
        return f"{block}.{family.attn_out}", "input"
    if kind == "resid_mid":
        return _middle(model, block, adding), "input"
    return f"{block}.{adding.mlp if kind == 'mlp_out' else adding.attn}", "output"


def _remedy(model: nn.Module) -> str:
    return f"describe its family in a --plugin file (docs/add-a-model.md), or {modules_to_name(model)}"


def kind_of(model: nn.Module, path: str, side: Side) -> str | None:
    """Which of `KINDS` one side of a module is in its layer; None for none, and for resid_mid."""
    backbone = find_backbone(model)
    match = backbone and re.fullmatch(rf"{re.escape(backbone.layers_path)}\.(\d+)(?:\.(.+))?", path)
    if not match:
        return None
    layer, module = int(match[1]), match[2] or ""
    if not module:
        return "resid_post" if side == "output" else "resid_pre"
    family = find_family(model, layer)
    if family is None or side == "input":
        return "attn_out" if family and module == family.attn_out else None
    try:
        adding = adding_modules(model, layer, family)
    except UserError:  # then it has no name, and is the module that the path says
        return None
    attention = family.attn_out.rpartition(".")[0]  # which returns what the last of its modules does
    same = {adding.mlp: "mlp_out", adding.attn: "attn_add"}
    return same.get(module) or ("attn_add" if module == attention and adding.attn == family.attn_out else None)


def _middle(model: nn.Module, block: str, adding: Adding) -> str:
    """The first module of a decoder layer whose input is what enters the layer plus what its attention adds."""
    layer = model.get_submodule(block)
    entering, leaving = traffic(model, layer)
    wanted = entering[""] + adding.factor * leaving[adding.attn]
    no_sum = [entering[""], *(x for name, x in leaving.items() if not [*layer.get_submodule(name).children()])]
    children = {name for name, _ in layer.named_children()}
    for name, x in entering.items():
        if name not in children:
            continue
        # A dry run's tensors have no values: it is no sum if it enters the layer, or a single module made it.
        if not any(x is other for other in no_sum) if isinstance(x, FakeTensor) else _close(x, wanted):
            return f"{block}.{name}"
    raise UserError(f"{type(model).__name__}: no module of {block} is given its input plus attention, which may work "
                    "in parallel to the MLP: there is no resid_mid; choose another site")  # fmt: skip


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= 8 * torch.finfo(b.dtype).eps * b.norm())


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
    tokens = torch.arange(2, device=next(model.parameters()).device)[
        None
    ]  # one alone may be padding, embedded as zeros
    with torch.no_grad():
        seen = run_until_seen(model, tokens, {path: (model.get_submodule(path), side)})
    if path not in seen:
        raise UserError(f'site "{kind}": {path} takes no part in a forward pass: name another module')
    x = seen[path]
    if x.shape[:-1] != (1, 2):
        shape = tuple(x.shape)
        raise UserError(f'site "{kind}": the {side} of {path} has shape {shape} for two tokens, not (1, 2, width)')
    return x.shape[-1]
