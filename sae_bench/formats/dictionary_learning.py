"""dictionary_learning's folder, `ae.pt` and `config.json`, which names one of its classes.

    AutoEncoder          f = relu((x - bias) W + b), bias being our b_dec; its loader brings decoder rows to norm one
    AutoEncoderNew       f = relu(x W + b)
    GatedAutoEncoder     gate and magnitudes of x - decoder_bias
    AutoEncoderTopK      top_k of relu((x - b_dec) W + b), whatever threshold is stored beside
    BatchTopKSAE         relu((x - b_dec) W + b) where it exceeds one threshold; refused while that is unset
    JumpReluAutoEncoder  jumprelu of x itself

`ae.pt` is a pickle. It is opened only after its list of names has been found to hold tensors alone, and then by torch's
reader that builds nothing else; its tensors stay in the file until they have been checked.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_bench.errors import UserError
from sae_bench.formats.foreign import (
    About,
    ForeignSAE,
    check_shapes,
    whole_number,
    with_input_bias,
    with_norms_folded,
    without_input_bias,
)
from sae_bench.formats.headers import TORCH_DTYPES, TensorHeader, check_pickle, damaged, read_settings
from sae_bench.formats.hook_names import Place, place_of_path
from sae_bench.formats.source import Source
from sae_bench.records.files import replacing, write_json
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.convert import Weights

FORMAT = "dictionary_learning"
FILES = ("config.json", "ae.pt")

Layout = dict[str, tuple[str, ...]]
LINEAR: Layout = {"encoder.weight": ("d_sae", "d_in"), "decoder.weight": ("d_in", "d_sae")}
CLASSES: dict[str, tuple[str, Layout]] = {
    "AutoEncoder": ("relu", LINEAR | {"encoder.bias": ("d_sae",), "bias": ("d_in",)}),
    "AutoEncoderNew": ("relu", LINEAR | {"encoder.bias": ("d_sae",), "decoder.bias": ("d_in",)}),
    "GatedAutoEncoder": (
        "gated",
        LINEAR | {"decoder_bias": ("d_in",), "r_mag": ("d_sae",), "gate_bias": ("d_sae",), "mag_bias": ("d_sae",)},
    ),
    "AutoEncoderTopK": ("topk", LINEAR | {"encoder.bias": ("d_sae",), "b_dec": ("d_in",)}),
    "BatchTopKSAE": ("jumprelu", LINEAR | {"encoder.bias": ("d_sae",), "b_dec": ("d_in",), "threshold": ()}),
    "JumpReluAutoEncoder": (
        "jumprelu",
        {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_enc": ("d_sae",), "b_dec": ("d_in",),
         "threshold": ("d_sae",)},
    ),
}  # fmt: skip
"""Our architecture for each of their classes, and its tensors."""

OURS = {
    "encoder.weight": "W_enc", "decoder.weight": "W_dec", "encoder.bias": "b_enc", "bias": "b_dec",
    "decoder.bias": "b_dec", "decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag",
}  # fmt: skip
SEES_X_ITSELF = ("AutoEncoderNew", "JumpReluAutoEncoder")

WRITTEN_AS = {
    "relu": "AutoEncoderNew", "gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder"
}  # fmt: skip


def read(source: Source) -> ForeignSAE:
    """See what a folder of dictionary_learning holds."""
    where = source.files["config.json"]
    trainer = read_settings(where).get("trainer")
    if not isinstance(trainer, dict):
        raise UserError(f"{where}: trainer is missing: it says which class the SAE is of")
    name = trainer.get("dict_class")
    if not isinstance(name, str) or name not in CLASSES:
        raise UserError(f"{where}: dict_class {name!r} is none of {', '.join(CLASSES)}: it cannot be evaluated")
    path = source.files["ae.pt"]
    arch, layout = CLASSES[name]
    tensors = _open(path, layout)
    d_in, d_sae = check_shapes(path, _headers(path, tensors), layout)
    if name == "BatchTopKSAE" and not float(tensors["threshold"]) >= 0:
        raise UserError(f"{path}: its threshold was never set, so what it selects depends on the batch: "
                        "it cannot be evaluated")  # fmt: skip
    k = whole_number(where, "k", _k(tensors, trainer), d_sae) if arch == "topk" else None
    return ForeignSAE(
        FORMAT, source.name, arch, d_in, d_sae, _place(trainer).or_else(place_of_path(source.name)),
        lambda: _load(path, name), k, hub_commit=source.hub_commit,
    )  # fmt: skip


def _k(tensors: Weights, trainer: dict[str, Any]) -> object:
    k = tensors.get("k")
    return int(k) if isinstance(k, Tensor) and k.numel() == 1 and not k.is_floating_point() else trainer.get("k")


def _place(trainer: dict[str, Any]) -> Place:
    layer, model, module = (trainer.get(name) for name in ("layer", "lm_name", "submodule_name"))
    named = place_of_path(module) if isinstance(module, str) else Place()
    return named.or_else(Place(None, layer if type(layer) is int and layer >= 0 else None,
                               model if isinstance(model, str) else None))  # fmt: skip


def _open(path: Path, layout: Layout) -> Weights:
    """The tensors of the pickle, still in the file."""
    check_pickle(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 (an unpickler raises anything)
        raise damaged(path, " ".join(str(error).split())[:200]) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise damaged(path, "it is no dictionary of tensors")
    size = os.path.getsize(path)
    tensors: Weights = {str(name): value for name, value in found.items()}
    # A view may show the same number as often as it likes, and would be written out in full once it is used.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > size:
        raise damaged(path, "its tensors claim more than the file holds")
    return tensors


def _headers(path: Path, tensors: Weights) -> dict[str, TensorHeader]:
    headers = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if name in OURS or name in OURS.values():
            if dtype not in TORCH_DTYPES:
                raise UserError(f"{path}: {name} has the dtype {dtype}: give {', '.join(TORCH_DTYPES)}")
            if tensor.layout != torch.strided:
                raise damaged(path, f"{name} is no plain tensor")
        headers[name] = TensorHeader(tuple(tensor.shape), TORCH_DTYPES.get(dtype, dtype))
    return headers


def _load(path: Path, name: str) -> Weights:
    _, layout = CLASSES[name]
    tensors = _open(path, layout)
    check_shapes(path, _headers(path, tensors), layout)  # again: it may have changed since
    weights = {}
    for theirs, sizes in layout.items():
        tensor = tensors[theirs].float().clone()  # out of the file
        transposed = theirs in LINEAR
        weights[OURS.get(theirs, theirs)] = tensor.T if transposed else tensor
        if theirs == "threshold" and not sizes:
            weights["threshold"] = tensor.expand(len(tensors["encoder.bias"])).clone()
    if name not in SEES_X_ITSELF:
        weights = without_input_bias(weights)
    return with_norms_folded(weights) if name == "AutoEncoder" else weights


def check(sae: SparseAutoencoder) -> None:
    """The format holds every built-in architecture."""


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
        "submodule_name": f"{about.site['kind']}_layer_{about.site['layer']}",
    }  # fmt: skip
    if sae.nonlinearity == "topk":
        trainer["k"] = int(sae.config.sparsity)
        state |= {"k": torch.tensor(trainer["k"]), "threshold": torch.tensor(-1.0)}
    with replacing(folder / "ae.pt") as temporary:
        torch.save(state, temporary)
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {"ctx_len": about.metadata.get("context_size")}})
    return folder
