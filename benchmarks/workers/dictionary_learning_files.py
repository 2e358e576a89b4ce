"""dictionary_learning's and sparsify's files, each read and written by its own library."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from dictionary_learning import dictionary  # type: ignore[import-not-found]
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # type: ignore[import-not-found]
from dictionary_learning.trainers.matryoshka_batch_top_k import (  # type: ignore[import-not-found]
    MatryoshkaBatchTopKSAE,
)
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # type: ignore[import-not-found]
from dictionary_learning.utils import load_dictionary  # type: ignore[import-not-found]
from sparsify import SparseCoder, SparseCoderConfig  # type: ignore[import-not-found]
from torch import Tensor

from workers.files import Compute, serve_files, set_parameters

LINEAR = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}
CLASSES: dict[str, tuple[Any, dict[str, str]]] = {
    "AutoEncoder": (dictionary.AutoEncoder, LINEAR | {"encoder.bias": "b_enc", "bias": "b_dec"}),
    "AutoEncoderNew": (dictionary.AutoEncoderNew, LINEAR | {"encoder.bias": "b_enc", "decoder.bias": "b_dec"}),
    "GatedAutoEncoder": (
        dictionary.GatedAutoEncoder,
        LINEAR | {"decoder_bias": "b_dec", "r_mag": "r_mag", "gate_bias": "b_gate", "mag_bias": "b_mag"},
    ),
    "AutoEncoderTopK": (AutoEncoderTopK, LINEAR | {"encoder.bias": "b_enc", "b_dec": "b_dec"}),
    "BatchTopKSAE": (BatchTopKSAE, LINEAR | {"encoder.bias": "b_enc", "b_dec": "b_dec", "threshold": "scalar"}),
    "MatryoshkaBatchTopKSAE": (
        MatryoshkaBatchTopKSAE,
        {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")} | {"threshold": "scalar"},
    ),
    "JumpReluAutoEncoder": (
        dictionary.JumpReluAutoEncoder,
        {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")},
    ),
}


def load(folder: Path, kind: str) -> Compute:
    if kind == "sparsify":
        return of_coder(SparseCoder.load_from_disk(folder))
    loaded, config = load_dictionary(str(folder), "cpu")
    assert config["trainer"]["dict_class"] == kind, config
    return lambda x: (loaded.encode(x), loaded(x))


def make(folder: Path, kind: str, parts: Mapping[str, Tensor], place: str | None) -> Compute:
    d_in, d_sae = parts["W_enc"].shape
    k = int(parts["k"])
    if kind == "sparsify":
        coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k))
        values = {"encoder.weight": parts["W_enc"].T, "encoder.bias": parts["b_enc"]}
        set_parameters(coder, values | {name: parts[name] for name in ("W_dec", "b_dec")})
        coder.save_to_disk(folder)
        return of_coder(coder)
    own, names = CLASSES[kind]
    groups = ([d_sae // 4, d_sae - d_sae // 4],) if "Matryoshka" in kind else ()
    made = own(d_in, d_sae, *((k,) if "TopK" in kind else ()), *groups)
    set_parameters(made, {t: parts[name].T if t in LINEAR else parts[name] for t, name in names.items()})
    folder.mkdir(parents=True)
    torch.save(made.state_dict(), folder / "ae.pt")
    trainer = {
        "dict_class": kind,
        "layer": 9,
        "lm_name": "demo",
        "submodule_name": place or "resid_post_layer_9",
        "k": k,
    }
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    if kind == "AutoEncoder":
        # As its loader does, whose own check of that has an absolute bound, too tight for activations as long as these.
        norms = made.decoder.weight.norm(dim=0)
        return lambda x: (made.encode(x) * norms, made(x))
    return load(folder, kind)


def of_coder(coder: Any) -> Compute:
    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        top = coder.encode(x)
        f = torch.zeros(len(x), coder.num_latents).scatter(1, top.top_indices, top.top_acts)
        return f, coder.decode(top.top_acts, top.top_indices)

    return compute


if __name__ == "__main__":
    serve_files(load, make, ["dictionary-learning", "eai-sparsify", "torch"])
