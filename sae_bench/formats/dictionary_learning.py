"""dictionary_learning's folder, `ae.pt` and `config.json`, which names one of its classes.

    AutoEncoder          f = relu((x - bias) W + b), bias being our b_dec; its loader brings decoder rows to norm one
    AutoEncoderNew       f = relu(x W + b)
    GatedAutoEncoder     gate and magnitudes of x - decoder_bias
    AutoEncoderTopK      top_k of relu((x - b_dec) W + b), whatever threshold is stored beside
    BatchTopKSAE         relu((x - b_dec) W + b) where it exceeds one threshold; refused while that is unset
    MatryoshkaBatchTopKSAE   the same, whatever its groups
    JumpReluAutoEncoder  jumprelu of x itself

`ae.pt` is a pickle; its tensors stay in the file until they have been checked.
"""

import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_bench.errors import UserError
from sae_bench.formats.foreign import (
    JUMPRELU,
    About,
    ForeignSAE,
    Layout,
    Source,
    check_shapes,
    load_pickle,
    open_pickle,
    shapes_of,
    unread,
    whole_number,
    with_input_bias,
    with_norms_folded,
    without_input_bias,
)
from sae_bench.formats.headers import read_settings
from sae_bench.formats.hook_names import EMBEDDING, WORDS, Place, layer_of, place_of_module, place_of_path
from sae_bench.records.files import write_bytes, write_json
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.convert import Weights

FORMAT = "dictionary_learning"
FILES = ("config.json", "ae.pt")

LINEAR = {"encoder.weight": ("d_sae", "d_in"), "decoder.weight": ("d_in", "d_sae")}
CLASSES: dict[str, tuple[str, Layout]] = {
    "AutoEncoder": ("relu", LINEAR | {"encoder.bias": ("d_sae",), "bias": ("d_in",)}),
    "AutoEncoderNew": ("relu", LINEAR | {"encoder.bias": ("d_sae",), "decoder.bias": ("d_in",)}),
    "GatedAutoEncoder": (
        "gated",
        LINEAR | {"decoder_bias": ("d_in",), "r_mag": ("d_sae",), "gate_bias": ("d_sae",), "mag_bias": ("d_sae",)},
    ),
    "AutoEncoderTopK": ("topk", LINEAR | {"encoder.bias": ("d_sae",), "b_dec": ("d_in",)}),
    "BatchTopKSAE": ("jumprelu", LINEAR | {"encoder.bias": ("d_sae",), "b_dec": ("d_in",), "threshold": ()}),
    "MatryoshkaBatchTopKSAE": ("jumprelu", {**JUMPRELU, "threshold": ()}),
    "JumpReluAutoEncoder": ("jumprelu", JUMPRELU),
}  # fmt: skip
"""Our architecture for each of their classes, and its tensors."""

OURS = {
    "encoder.weight": "W_enc", "decoder.weight": "W_dec", "encoder.bias": "b_enc", "bias": "b_dec",
    "decoder.bias": "b_dec", "decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag",
}  # fmt: skip
KNOWN = (
    "trainer_class|dict_class|activation_dim|dict_size|k|layer|lm_name|submodule_name|device|seed|steps|wandb_name|"
    "l1_.*|l0_.*|lr|sparsity_.*|initial_.*|.*_(start|end|steps|alpha|beta|aux|fractions|weights|sizes|coeff|frac)|next_p|p|"
    "n_sparsity_updates|bandwidth|target_l0|norm_factor|d_submodule|io|n_ctxs|ctx_len|(refresh|out)_batch_size|"
    "ghost_.*|resample_.*|k_anneal.*|encoder_regularization|remove_bos|add_special_tokens|max_activation_norm_multiple"
)
"""Settings of trainer and buffer that are read here, or that change nothing; a regular expression."""

SITE = re.compile(r"(.+)_layer_?(\d+)")
SEES_X_ITSELF = ("AutoEncoderNew", "JumpReluAutoEncoder")

UNSET = -1.0
"""The threshold of a BatchTopK until training has measured one."""

WRITTEN_AS = {
    "relu": "AutoEncoderNew", "gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder"
}  # fmt: skip
HOLDS = tuple(WRITTEN_AS)


def read(source: Source) -> ForeignSAE:
    """See what a folder of dictionary_learning holds."""
    where = source.files["config.json"]
    settings = read_settings(where)
    trainer, buffer = settings.get("trainer"), settings.get("buffer")
    if not isinstance(trainer, dict):
        raise UserError(f"{where}: trainer is missing: it says which class the SAE is of")
    name = trainer.get("dict_class")
    if not isinstance(name, str) or name not in CLASSES:
        raise UserError(f"{where}: dict_class {name!r} is none of {', '.join(CLASSES)}: it cannot be evaluated")
    path = source.files["ae.pt"]
    arch, layout = CLASSES[name]
    tensors = open_pickle(path, layout)
    d_in, d_sae = check_shapes(path, shapes_of(tensors), layout)
    if "BatchTopK" in name and float(tensors["threshold"]) == UNSET:
        raise UserError(f"{path}: its threshold was never set, so what it selects depends on the batch: "
                        "it cannot be evaluated; training sets it from threshold_start_step on")  # fmt: skip
    stored = tensors.get("k", torch.empty(0))
    said = stored.item() if stored.numel() == 1 else trainer.get("k")
    k = whole_number(where, "k", said, d_sae) if arch == "topk" else None
    buffer = buffer if isinstance(buffer, dict) else {}
    place = _place(where, trainer, buffer.get("io")).or_else(place_of_path(source.name, attn_out="attn_add"))
    notes = unread(where, [*trainer, *buffer], KNOWN)
    return ForeignSAE(FORMAT, source, arch, d_in, d_sae, place, lambda: _load(path, name), k, notes=notes)


def _place(where: Path, trainer: dict[str, Any], io: object) -> Place:
    """The module that `submodule_name` means, and the side of it that the buffer of activations took."""
    layer, model, module = (trainer.get(name) for name in ("layer", "lm_name", "submodule_name"))
    if io not in (None, "in", "out"):
        raise UserError(f"{where}: io is {io!r}: it reads one side of a module and predicts another, so it is no "
                        "autoencoder, and cannot be evaluated")  # fmt: skip
    known = Place(None, layer if type(layer) is int and layer >= 0 else None, model if isinstance(model, str) else None)
    place = _named(module, "input" if io == "in" else "output")
    number = place.layer if place.layer is not None else layer_of(place.kind or "")
    if None not in (number, known.layer) and number != known.layer:
        place, known = Place(unclear=f"submodule_name is {module!r}, but layer {layer}"), Place(model=known.model)
    return place.or_else(known).read_in(where.name)


def _named(module: object, side: str) -> Place:
    """What is called by a word and its layer is the output of a module; else it is a module's path."""
    if module is None and side == "output":
        return Place()
    if isinstance(module, str) and (match := SITE.fullmatch(module)):
        kind = next((kind for kind, word in WORDS.items() if re.fullmatch(word, match[1])), None)
        if kind and side == "output":
            return Place("attn_add" if match[1] == "attn_out" else kind, int(match[2]))
    elif isinstance(module, str) and ("." in module or EMBEDDING.search(module)):
        return place_of_module(module, side)
    return Place(unclear=f"submodule_name is {module!r}" + ("" if side == "output" else ', and io "in"'))


def _load(path: Path, name: str) -> Weights:
    found = load_pickle(path, CLASSES[name][1])
    weights = {OURS.get(theirs, theirs): value.T if theirs in LINEAR else value for theirs, value in found.items()}
    if "BatchTopK" in name:
        weights["threshold"] = weights["threshold"].expand_as(weights["b_enc"]).clone()
    if name not in SEES_X_ITSELF:
        weights = without_input_bias(weights)
    return with_norms_folded(weights) if name == "AutoEncoder" else weights


def write(folder: Path, sae: SparseAutoencoder, about: About) -> Path:
    """Write an SAE as dictionary_learning's trainers do."""
    assert sae.nonlinearity is not None, "a built-in architecture"
    name = WRITTEN_AS[sae.nonlinearity]
    weights = {key: value.cpu() for key, value in sae.stored().items()}
    if name not in SEES_X_ITSELF:
        weights = with_input_bias(weights)
    state: dict[str, Tensor] = {}
    for theirs in CLASSES[name][1]:
        value = weights[OURS.get(theirs, theirs)]
        state[theirs] = (value.T if theirs in LINEAR else value).contiguous()
    trainer: dict[str, Any] = {
        "dict_class": name, "activation_dim": sae.config.d_in, "dict_size": sae.config.d_sae,
        "layer": about.site["layer"], "lm_name": about.metadata.get("model_name"),
        "submodule_name": _name(about.site),
    }  # fmt: skip
    if sae.nonlinearity == "topk":
        trainer["k"] = int(sae.config.sparsity)
        state |= {"k": torch.tensor(trainer["k"]), "threshold": torch.tensor(-1.0)}
    content = BytesIO()  # torch.save would put the name of a file, a temporary one's, into it
    torch.save(state, content)
    write_bytes(folder / "ae.pt", content.getvalue())
    buffer = {"io": about.site["side"].removesuffix("put"), "ctx_len": about.metadata.get("context_size")}
    write_json(folder / "config.json", {"trainer": trainer, "buffer": buffer})
    return folder


def _name(site: Mapping[str, Any]) -> str:
    """What they call a site: by a word where it is the output of a module that has one, else by the module's path."""
    word = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attn_add": "attn_out"}.get(site["kind"])
    return f"{word}_layer_{site['layer']}" if word else str(site["path"])
