"""SAELens's files, `SAE.load_from_disk` and `save_model`; and those of others, as SAELens's loaders read them."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import (  # type: ignore[import-not-found]
    SAE,
    AbsTopKSAE,
    AbsTopKSAEConfig,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    MatchingPursuitSAE,
    MatchingPursuitSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.loading import pretrained_sae_loaders as loaders  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from workers.files import Compute, serve_files, set_parameters

CLASSES: dict[str, tuple[Any, Any, list[str]]] = {
    "standard": (StandardSAE, StandardSAEConfig, ["b_enc"]),
    "topk": (TopKSAE, TopKSAEConfig, ["b_enc"]),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, ["b_enc", "threshold"]),
    "gated": (GatedSAE, GatedSAEConfig, ["b_gate", "b_mag", "r_mag"]),
    "abstopk": (AbsTopKSAE, AbsTopKSAEConfig, ["b_enc"]),
    "matching_pursuit": (MatchingPursuitSAE, MatchingPursuitSAEConfig, []),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, ["b_enc"]),
    "matryoshka_batchtopk": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, ["b_enc"]),
}
PUBLISHED: dict[str, tuple[Callable[..., Any], str, str]] = {
    "gemma_scope": (
        loaders.gemma_2_sae_huggingface_loader, "google/gemma-scope-2b-pt-res", "layer_9/width_1k/average_l0_32"
    ),
    "gemma_scope_2": (
        loaders.gemma_3_sae_huggingface_loader, "google/gemma-scope-2-270m-pt", "resid_post/layer_9_width_1k_l0_small"
    ),
    "qwen_scope": (
        loaders.qwen_scope_sae_huggingface_loader, "Qwen/SAE-Res-Qwen3-1.7B-Base-W1K-L0_32", "layer9.sae.pt"
    ),
    "goodfire": (
        loaders.get_goodfire_huggingface_loader, "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
        "Llama-3.1-8B-Instruct-SAE-l19.pth",
    ),
    "llama_scope": (
        loaders.llama_scope_sae_huggingface_loader, "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L9R-8x"
    ),
}  # fmt: skip
"""SAELens's loader of each, a repository and a path that it knows."""

READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".safetensors": load_file, ".npz": np.load, ".pt": torch.load, ".pth": torch.load
}  # fmt: skip

MEAN_NORM = 7.0
HOOK = "blocks.9.hook_resid_post"


def computing(sae: Any) -> Compute:
    return lambda x: (sae.encode(x), sae(x))


def load(folder: Path, kind: str) -> Compute:
    if kind in PUBLISHED:
        return published(folder, kind)
    sae = SAE.load_from_disk(folder)
    assert sae.cfg.architecture() == kind, f"{sae.cfg.architecture()}, not {kind}"
    return computing(sae)


def make(folder: Path, kind: str, parts: Mapping[str, Tensor], place: str | None) -> Compute:
    if kind in PUBLISHED:
        write_published(folder, kind, parts)
        return published(folder, kind)
    sae_class, config_class, own = CLASSES[kind]
    d_in, d_sae = parts["W_enc"].shape
    k, more = int(parts["k"]), {}
    if kind.endswith("topk"):
        more = {"k": k, "rescale_acts_by_decoder_norm": True}
    if kind == "matryoshka_batchtopk":
        more |= {"matryoshka_widths": [d_sae // 4, d_sae]}
    if kind == "matching_pursuit":  # it stops early, as by default
        more, parts = {"max_iterations": k}, {**parts, "W_dec": normalize(parts["W_dec"], dim=1)}
    sae = sae_class(config_class(d_in=d_in, d_sae=d_sae, **more))
    matrices = ["W_dec", "b_dec"] if kind == "matching_pursuit" else ["W_enc", "W_dec", "b_dec"]
    set_parameters(sae, {name: parts[name] for name in (*matrices, *own)})
    sae.cfg.metadata.hook_name = place or HOOK
    if not kind.endswith("batchtopk"):
        sae.save_model(folder)
        return computing(sae)
    sae.topk_threshold = parts["scalar"].double()
    for_inference = folder if kind.startswith("matryoshka") else folder.parent.parent / f"{kind}_inference"
    if for_inference != folder:
        sae.save_model(folder)  # a checkpoint of training
    sae.save_inference_model(for_inference)
    return load(for_inference, "jumprelu")


def write_published(folder: Path, kind: str, parts: Mapping[str, Tensor]) -> None:
    """A file in the layout that a publisher has, which SAELens has a loader for."""
    folder.mkdir(parents=True)
    turned = {name: parts[name].T.contiguous() for name in ("W_enc", "W_dec")}
    linear = {"weight": turned["W_enc"], "bias": parts["b_enc"]}, {"weight": turned["W_dec"], "bias": parts["b_dec"]}
    if kind == "gemma_scope_2":
        named = {name: parts[name.replace("w_", "W_")] for name in ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")}
        save_file(named, folder / "params.safetensors")
        point = "model.layers.9.output"
        config = {
            "hf_hook_point_in": point, "hf_hook_point_out": point, "width": len(parts["b_enc"]), "l0": 60,
            "model_name": "google/gemma-3-270m", "architecture": "jump_relu", "affine_connection": False, "type": "sae",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
    elif kind == "qwen_scope":
        torch.save(turned | {name: parts[name] for name in ("b_enc", "b_dec")}, folder / "layer9.sae.pt")
    elif kind == "goodfire":
        state = {
            f"{side}_linear.{n}": v
            for side, of in zip(("encoder", "decoder"), linear, strict=True)
            for n, v in of.items()
        }
        torch.save(state, folder / PUBLISHED[kind][2])
    else:
        rows = normalize(parts["W_dec"], dim=1)  # SAELens's loader takes norms of one for granted
        linear[1]["weight"] = rows.T.contiguous()
        (folder / "checkpoints").mkdir()
        state = {
            f"{side}.{n}": v for side, of in zip(("encoder", "decoder"), linear, strict=True) for n, v in of.items()
        }
        save_file(state, folder / "checkpoints" / "final.safetensors")
        config = {
            "hook_point_in": HOOK, "hook_point_out": HOOK, "use_decoder_bias": True, "dtype": "torch.float32",
            "apply_decoder_bias_to_pre_encoder": False, "d_model": rows.shape[1], "d_sae": len(rows),
            "act_fn": "jumprelu", "jump_relu_threshold": float(parts["scalar"]), "norm_activation": "dataset-wise",
            "dataset_average_activation_norm": {"in": MEAN_NORM, "out": MEAN_NORM}, "use_glu_encoder": False,
            "sparsity_include_decoder_norm": True, "top_k": 50,
        }  # fmt: skip
        (folder / "hyperparams.json").write_text(json.dumps(config))


def published(folder: Path, kind: str) -> Compute:
    """What SAELens makes of a folder when it takes it for the one of the hub that it knows."""
    loader, repo, path = PUBLISHED[kind]

    def local(_: str, filename: str, subfolder: str = "", **__: object) -> str:
        return str(folder / str(Path(subfolder, filename)).removeprefix(f"{path}/"))

    def download(repo_id: str, filename: str, subfolder: str = "", **_: object) -> str:
        return local(repo_id, filename, subfolder)

    loaders.hf_hub_download = download
    loaders.get_safetensors_tensor_shapes = lambda repo_id, filename: {
        name: list(value.shape) for name, value in load_file(local(repo_id, filename)).items()
    }
    (weights,) = (file for file in folder.rglob("*") if file.suffix in READERS)
    found = READERS[weights.suffix](weights)
    width = {"d_in": ("b_dec", "decoder.bias", "decoder_linear.bias"), "d_sae": ("b_enc", "encoder.bias",
             "encoder_linear.bias")}  # fmt: skip
    overrides = {size: len(next(found[name] for name in names if name in found)) for size, names in width.items()}
    overrides |= {"dtype": "float32"}
    config, state, _ = loader(repo, path, device="cpu", cfg_overrides=overrides)
    scale = (
        math.sqrt(overrides["d_in"]) / MEAN_NORM
        if config.get("normalize_activations") == "expected_average_only_in"
        else 1
    )
    sae = SAE.from_dict(loaders.handle_config_defaulting(config) | {"normalize_activations": "none"})
    sae.load_state_dict(state)
    if scale != 1:
        sae.fold_activation_norm_scaling_factor(scale)
        # Its latents stay on the scale of normalised activations, ours are on that of raw ones.
        return lambda x: (sae.encode(x) / scale, sae(x))
    return computing(sae)


if __name__ == "__main__":
    serve_files(load, make, ["sae-lens", "torch"])
