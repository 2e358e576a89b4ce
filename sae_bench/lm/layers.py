"""The decoder layers of a model: where they stand, and, by arithmetic, which modules of one add to the residual stream.

Layers are found without a family, too; `families` says which modules to try.
"""

import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sae_bench.errors import UserError
from sae_bench.lm.families import Family, find_family
from sae_bench.lm.hooks import AllSeen, Side, by_context, intercept

N_PROBED = 8


@dataclass(frozen=True, eq=False)
class Backbone:
    """What a model runs from its first decoder layer to its LM head."""

    layers_path: str
    layers: list[nn.Module]
    final_norm: nn.Module


def find_backbone(model: nn.Module) -> Backbone | None:
    """Return the decoder layers of `model` and the norm after them; None where no layers are to be seen.

    Without a family, layers are the first list of as many modules as the configuration counts layers, and the norm is
    the last one beside them; whoever replays a model sees whether that is so.
    """
    family = find_family(model)
    if family is not None:
        return Backbone(
            family.layers, list(model.get_submodule(family.layers).children()), model.get_submodule(family.final_norm)
        )
    whole: Any = model  # a model of transformers
    n_layers = getattr(whole.config.get_text_config(), "num_hidden_layers", None)
    within = {id(module) for module in whole.get_decoder().modules()}
    lists = {name: module for name, module in _lists(model).items() if id(module) in within}
    path = next((name for name, module in lists.items() if len(module) == (n_layers or len(module))), None)
    if path is None:
        return None
    layers = lists[path]
    beside = model.get_submodule(path.rpartition(".")[0])
    norms = [module for name, module in beside.named_children() if "norm" in name or name.startswith("ln_")]
    return Backbone(path, list(layers), norms[-1] if norms else nn.Identity())


@dataclass(frozen=True)
class Adding:
    """Modules of a decoder layer whose outputs, times a factor that is one but in few models, the residual gains."""

    mlp: str
    attn: str
    factor: float = 1.0


def adding_modules(model: nn.Module, layer: int, family: Family) -> Adding:
    """Return the modules of a decoder layer whose outputs are what its MLP, and what attention, adds to the residual.

    They are `family.mlp_out` and `family.attn_out`, or a module that their output is passed on to (a norm), for which
    resid_post - resid_pre = factor * (attn + mlp) to the rounding of the dtype. With resid_mid = resid_pre + factor *
    attn that is resid_post - resid_mid = factor * mlp, and it holds where the two stand side by side, too. The factor
    is 1, or what it has to be for the sums to agree as well as they can (Granite multiplies what it adds).
    Eight tokens run through the model as far as the layer. A dry run's tensors have no values: there the last module
    counts that the output is passed on to, as it is, and that makes something new of it.

    Raises UserError where it holds for none.
    """
    block = f"{family.layers}.{layer}"
    entering, leaving = traffic(model, model.get_submodule(block))
    if isinstance(leaving[""], FakeTensor):
        mlp, attn = (_last_made(name, entering, leaving) for name in (family.mlp_out, family.attn_out))
        return Adding(mlp, attn)
    if not leaving[""].isfinite().all():
        return Adding(family.mlp_out, family.attn_out)  # whoever captures what is not finite refuses it, and says so
    pairs = [*product(*(_passed_on(name, entering, leaving) for name in (family.mlp_out, family.attn_out)))]
    for find_factor, (mlp, attn) in product((lambda *_: 1.0, _factor), pairs):
        parts = leaving[attn], leaving[mlp]
        factor = find_factor(leaving[""], entering[""], *parts)
        if _adds_up(leaving[""], entering[""], *(factor * part.double() for part in parts)):
            return Adding(mlp, attn, factor)
    raise UserError(
        f"{type(model).__name__}: what {block} adds to the residual stream is not what its {family.attn_out} and "
        f"{family.mlp_out} return, nor a norm of it: {modules_to_name(model)}"
    )


def modules_to_name(model: nn.Module) -> str:
    """The remedy for whoever looks for a site: what there is to name."""
    backbone = find_backbone(model)
    if backbone is None:
        lists = [f"{name}.{{layer}} ({len(of)} {type(of[0]).__name__})" for name, of in _lists(model).items()]
        lists = lists or [name for name, _ in model.named_children()]
        return f"name one with --site path:MODULE; what looks like layers here: {', '.join(lists)}"
    children = dict.fromkeys(name for layer in backbone.layers for name, _ in layer.named_children())
    return f"name one with --site path:{backbone.layers_path}.{{layer}}.MODULE; MODULE is in {', '.join(children)}"


def _lists(model: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    """The lists of modules that are not themselves within a list, by name; experts are, for one."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and not re.search(r"\.\d+(\.|$)", name)
    }


Passing = dict[str, Float[Tensor, "1 n _"]]


def traffic(model: nn.Module, block: nn.Module) -> tuple[Passing, Passing]:
    """Copies of what enters and what leaves each module of a layer, by name; the layer's own is "".

    Of a dry run's tensors, themselves: which is which is all that there is to see.
    """
    whole: Any = model
    rows = whole.get_input_embeddings().weight
    tokens = (1 + torch.arange(N_PROBED, device=rows.device)[None] * 7919) % len(rows)
    found: dict[Side, Passing] = {"input": {}, "output": {}}

    def see(name: str, side: Side, x: Any) -> None:
        if isinstance(x, Tensor):
            x = by_context(x, tokens)
            found[side][name] = x if isinstance(x, FakeTensor) else x.clone()
        if (name, side) == ("", "output"):
            raise AllSeen

    with torch.no_grad(), suppress(AllSeen), ExitStack() as hooks:
        for (name, module), side in product(block.named_modules(), found):
            hooks.enter_context(intercept(module, side, partial(see, name, side)))
        model(input_ids=tokens, use_cache=False)
    return found["input"], found["output"]


def _passed_on(name: str, entering: Passing, leaving: Passing) -> list[str]:
    """A module, and those behind it that are given its output as it is, in the order of the pass."""
    chain = [name] if name in leaving else []
    for other, x in entering.items():
        if other in leaving and other not in chain and any(_same(x, leaving[before]) for before in chain):
            chain.append(other)
    return chain


def _last_made(name: str, entering: Passing, leaving: Passing) -> str:
    """The first module of `_passed_on` that returns what the last one does; a dropout at rest returns its input."""
    chain = _passed_on(name, entering, leaving)
    return next((module for module in chain if leaving[module] is leaving[chain[-1]]), name)


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b if isinstance(a, FakeTensor) else torch.equal(a, b)


def _factor(total: Tensor, first: Tensor, *parts: Tensor) -> float:
    """By what the sum of some parts has to be multiplied to come nearest to what the total is more than the first."""
    if any(part.shape != total.shape for part in parts):
        return 1.0
    gained, added = total.double() - first.double(), torch.stack(parts).double().sum(0)
    return float((gained * added).sum() / added.square().sum())


def _adds_up(total: Tensor, *parts: Tensor) -> bool:
    """Whether parts, added one after the other and rounded each time, give the total."""
    if any(part.shape != total.shape for part in parts):
        return False
    exact = sum(part.double() for part in parts)
    size = sum(part.double().abs() for part in parts)
    return bool(((total.double() - exact).abs() <= 2 * torch.finfo(total.dtype).eps * size).all())
