"""How models are built: where their decoder layers stand, and which modules of a layer add to the residual stream.

A family is known by its structure - which modules exist - and not by its name, so a new model built like Llama needs no
line here. A name alone is never believed: where a model runs, eight tokens show whether what the modules return is what
the layer adds (`adding_modules`). Layers are found without a family, too.
"""

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
from sae_bench.lm.hooks import AllSeen, Side, by_context, intercept
from sae_bench.registry import REGISTERED

WRAPPERS = ("language_model", "text_model")
"""Parts of a module's path that multimodal models have before, or within, that of their text model."""

N_PROBED = 8


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


# A layer is of the first family whose modules all exist. What has a norm more stands before what has only the rest:
# what Gemma's and GLM-4's MLP adds to the residual has gone through that norm.
FAMILIES = [
    Family("model.layers", "model.norm", "post_feedforward_layernorm", "self_attn.o_proj"),  # Gemma 2, Gemma 3, OLMo 2
    Family("model.layers", "model.norm", "post_mlp_layernorm", "self_attn.o_proj"),  # GLM-4
    Family("model.layers", "model.norm", "mlp", "self_attn.o_proj"),  # Llama, Qwen, Mistral, SmolLM
    Family("model.layers", "model.norm", "mlp", "linear_attn.out_proj"),  # Qwen3-Next, where attention is linear
    Family("model.layers", "model.norm", "feed_forward", "self_attn.o_proj"),  # Llama 4
    Family("model.layers", "model.final_layernorm", "mlp", "self_attn.dense"),  # Phi
    Family("model.decoder.layers", "model.decoder.final_layer_norm", "fc2", "self_attn.out_proj"),  # OPT
    Family("gpt_neox.layers", "gpt_neox.final_layer_norm", "mlp", "attention.dense"),  # GPT-NeoX: Pythia
    Family("transformer.h", "transformer.ln_f", "mlp", "attn.c_proj"),  # GPT-2
    Family("transformer.h", "transformer.ln_f", "mlp", "attn.out_proj"),  # GPT-J
    Family("transformer.h", "transformer.ln_f", "mlp.dense_4h_to_h", "self_attention.dense"),  # Falcon, BLOOM
]


def register_family(family: Family) -> None:
    """Give the models that are built so their sites. It stands before all that were known: one may refine another."""
    FAMILIES.insert(0, family)
    REGISTERED.append(f"family {family.layers}")


@dataclass(frozen=True, eq=False)
class Backbone:
    """What a model runs from its first decoder layer to its LM head."""

    layers_path: str
    layers: list[nn.Module]
    final_norm: nn.Module


def find_family(model: nn.Module, layer: int = 0) -> Family | None:
    """Return the family that a layer of `model` is built like, with the paths of this model; None if of none."""
    paths = _paths(model)

    def fits(family: Family) -> bool:
        block = f"{family.layers}.{layer}"
        return {family.final_norm, f"{block}.{family.mlp_out}", f"{block}.{family.attn_out}"} <= paths.keys()

    found = next(filter(fits, FAMILIES), None)
    return found and Family(paths[found.layers], paths[found.final_norm], found.mlp_out, found.attn_out)


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
    n_layers, inside = whole.config.get_text_config().num_hidden_layers, whole.get_decoder()
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    within = {id(module) for module in inside.modules()}
    path, layers = next(((n, m) for n, m in lists if len(m) == n_layers and id(m) in within), ("", None))
    if layers is None:
        return None
    beside = model.get_submodule(path.rpartition(".")[0])
    norms = [module for name, module in beside.named_children() if "norm" in name or name.startswith("ln_")]
    return Backbone(path, list(layers), norms[-1] if norms else nn.Identity())


def adding_modules(model: nn.Module, layer: int, family: Family) -> tuple[str, str]:
    """Return the modules of a decoder layer whose outputs are what its MLP, and what attention, adds to the residual.

    They are `family.mlp_out` and `family.attn_out`, or a module that their output is passed on to (a norm), for which
    resid_post - resid_pre = attn + mlp to the rounding of the dtype. With resid_mid = resid_pre + attn that is
    resid_post - resid_mid = mlp, and it holds where the two stand side by side, too.
    Eight tokens run through the model as far as the layer. A dry run's tensors have no values: there the last module
    counts that the output is passed on to, as it is, and that makes something new of it.

    Raises UserError where it holds for none.
    """
    block = f"{family.layers}.{layer}"
    entering, leaving = traffic(model, model.get_submodule(block))
    if isinstance(leaving[""], FakeTensor):
        return _last_made(family.mlp_out, entering, leaving), _last_made(family.attn_out, entering, leaving)
    if not leaving[""].isfinite().all():
        return family.mlp_out, family.attn_out  # whoever captures what is not finite refuses it, and says so
    for mlp, attn in product(*(_passed_on(name, entering, leaving) for name in (family.mlp_out, family.attn_out))):
        if _adds_up(leaving[""], entering[""], leaving[attn], leaving[mlp]):
            return mlp, attn
    raise UserError(
        f"{type(model).__name__}: what {block} adds to the residual stream is not what its {family.attn_out} and "
        f"{family.mlp_out} return, nor a norm of it: {modules_to_name(model)}"
    )


def modules_to_name(model: nn.Module) -> str:
    """The remedy for whoever looks for a site: what there is to name."""
    backbone = find_backbone(model)
    if backbone is None:
        lists = [f"{name}.{{layer}}" for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        lists = lists or [name for name, _ in model.named_children()]
        return f"name one with --site path:MODULE; lists of modules here: {', '.join(lists)}"
    children = dict.fromkeys(name for layer in backbone.layers for name, _ in layer.named_children())
    return f"name one with --site path:{backbone.layers_path}.{{layer}}.MODULE; MODULE is in {', '.join(children)}"


def _paths(model: nn.Module) -> dict[str, str]:
    """Every module's path, by what it would be without the wrappers of a multimodal model."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}


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


def _adds_up(total: Tensor, *parts: Tensor) -> bool:
    """Whether parts, added one after the other and rounded each time, give the total."""
    if any(part.shape != total.shape for part in parts):
        return False
    exact = sum(part.double() for part in parts)
    size = sum(part.double().abs() for part in parts)
    return bool(((total.double() - exact).abs() <= 2 * torch.finfo(total.dtype).eps * size).all())
