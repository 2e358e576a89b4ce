"""Where in a language model an SAE sits: the named sites, and the modules behind them.

A site is one module and one side of it: "what `model.layers.9` returns", "what goes into `self_attn.o_proj`". The
short names `resid_post`, `mlp_out` and `attn_out` follow Gemma Scope (arXiv 2408.05147) and mean a different module in
each family of models (`families`). What a layer returns is `resid_post` in every model; one of no known family needs a
`register_family`, in a plugin file, for the other two, and its modules are reached with `path:MODULE` too.

The wrong module loads silently and reconstructs badly. So nothing is believed: that `mlp_out` and `attn_out` are what
the residual stream gains is seen by arithmetic, and the width of a site is measured, not read in a configuration, by a
few tokens that run through the model as far as the site; it is checked at every capture.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from sae_bench.errors import UserError, did_you_mean
from sae_bench.lm.families import adding_modules, find_backbone, find_family, modules_to_name
from sae_bench.lm.hooks import Side, run_until_seen
from sae_bench.records.schema import SAEDescription

SITE_KINDS = ("resid_post", "mlp_out", "attn_out")


@dataclass(frozen=True)
class Site:
    """One side of one module of a language model, where activations of width `d_in` are read and replaced.

    `layer` counts decoder layers from 0, `kind` is one of `SITE_KINDS` or the `path:...` that the user gave, and `path`
    is the module's name in `model.named_modules()`.
    """

    layer: int
    kind: str
    path: str
    side: Side
    d_in: int

    @property
    def name(self) -> str:
        """A name that is safe for folders: `layer_9.resid_post`, or `path.model.layers.9.mlp.input`."""
        if self.kind in SITE_KINDS:
            return f"layer_{self.layer}.{self.kind}"
        return f"path.{self.path}" + (".input" if self.side == "input" else "")


def find_site(model: nn.Module, kind: str, layer: int) -> Site:
    """Find the site `kind` of decoder layer `layer` (from 0) and measure its width.

    `kind` is `resid_post`, `mlp_out`, `attn_out`, or `path:MODULE` for the output of any module, `path:MODULE@input`
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
    """Return the module and the side that one of `SITE_KINDS` stands for."""
    if kind not in SITE_KINDS:
        raise UserError(f'unknown site "{kind}"{did_you_mean(kind, (*SITE_KINDS, "path:MODULE"))}')
    backbone, name = find_backbone(model), type(model).__name__
    if backbone is None:
        raise UserError(f"{name}: no known place for {kind} in this kind of model: {modules_to_name(model)}")
    n_layers = len(backbone.layers)
    if not 0 <= layer < n_layers:
        raise UserError(f"layer {layer}: {name} has layers 0..{n_layers - 1}; choose one of them")
    block = f"{backbone.layers_path}.{layer}"
    if kind == "resid_post":
        return block, "output"
    family = find_family(model, layer)
    if family is None:
        raise UserError(f"{name}: no known place for {kind} in {block}: {modules_to_name(model)}")
    mlp_out, _ = adding_modules(model, layer, family)
    return (f"{block}.{mlp_out}", "output") if kind == "mlp_out" else (f"{block}.{family.attn_out}", "input")


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
    tokens = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad():
        seen = run_until_seen(model, tokens, {path: (model.get_submodule(path), side)})
    if path not in seen:
        raise UserError(f'site "{kind}": {path} takes no part in a forward pass: name another module')
    x = seen[path]
    if x.shape[:-1] != (1, 2):
        shape = tuple(x.shape)
        raise UserError(f'site "{kind}": the {side} of {path} has shape {shape} for two tokens, not (1, 2, width)')
    return x.shape[-1]
