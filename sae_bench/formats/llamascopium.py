"""llamascopium's folder, `config.json` and `sae_weights.safetensors`; before version 2 the tool was called lm-saes.

An SAE works on activations that were brought to the norm sqrt(D) on average: c = sqrt(D) / mean ||x|| is stored as that
mean beside the weights, unless it was folded in (norm_activation "inference").

    z = c x W_E + b_E,  f = z where s passes,  x_hat = (f W_D + b_D) / c;  s = z ||W_D,i||, or z if norms are left out
    relu        s > 0
    topk        s is among the k largest, and above zero
    jumprelu    s > exp(log_jumprelu_threshold)

On raw x the biases and thresholds are divided by c, and matrices stay; where norms take part they go into the latents.
Crosscoders, cross-layer transcoders (CLTs), low-rank sparse attention (Lorsa) and mixtures of linear transforms are
refused, and so is a transcoder, which has two hook points.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_bench.errors import UserError
from sae_bench.formats.foreign import (
    ForeignSAE,
    Layout,
    Source,
    check_shapes,
    load_checked,
    positive,
    unread,
    whole_number,
    with_norms_folded,
    without_input_bias,
)
from sae_bench.formats.headers import Shapes, read_settings, safetensors_shapes
from sae_bench.formats.hook_names import Place, place_of_hook, place_of_path
from sae_bench.saes.convert import Weights

FORMAT = "llamascopium"
FILES = ("config.json", "sae_weights.safetensors")
NORM = "dataset_average_activation_norm"
KNOWN = (
    "sae_type|d_model|d_sae|expansion_factor|use_decoder_bias|act_fn|norm_activation|sparsity_include_decoder_norm|top_k|"
    "hook_point_(in|out)|use_glu_encoder|apply_decoder_bias_to_pre_encoder|jump_?relu_threshold.*|device|dtype|seed|lp|"
    f"{NORM}|init_.*|l1_.*|k_warmup_.*|bias_init_method|decoder_exactly_fixed_norm|use_(batch_norm_mse|ghost_grads|triton"
    "_kernel)|sparsity_threshold_for_triton_spmm_kernel|(tp|ddp)_size|sae_pretrained_.*|strict_loading"
)
"""Settings that are read here, or that change nothing, of this format and of `llama_scope`'s; a regular expression."""

LINEAR: Layout = {
    "encoder.weight": ("d_sae", "d_in"), "encoder.bias": ("d_sae",), "decoder.weight": ("d_in", "d_sae"),
    "decoder.bias": ("d_in",),
}  # fmt: skip
"""As two of torch's Linear layers, before version 2."""
PLAIN: Layout = {"W_E": ("d_in", "d_sae"), "b_E": ("d_sae",), "W_D": ("d_sae", "d_in"), "b_D": ("d_in",)}
OURS = dict(zip((*LINEAR, *PLAIN), ("W_enc", "b_enc", "W_dec", "b_dec") * 2, strict=True))


def read(source: Source) -> ForeignSAE:
    """See what a folder of llamascopium holds."""
    where, path = source.files["config.json"], source.files["sae_weights.safetensors"]
    settings = read_settings(where)
    if (kind := settings.get("sae_type", "sae")) != "sae":
        raise UserError(f"{where}: sae_type is {kind!r}: it reads or predicts other activations than those of one "
                        "site, so it is no autoencoder and cannot be evaluated")  # fmt: skip
    place = check_settings(where, settings).or_else(place_of_path(source.name))
    arch = settings.get("act_fn", "relu")
    if arch not in ("relu", "topk", "jumprelu"):
        raise UserError(f"{where}: act_fn {arch!r} is none of relu, topk, jumprelu: it cannot be evaluated")
    how = settings.get("norm_activation", "dataset-wise")
    if how not in ("dataset-wise", "inference"):
        raise UserError(
            f"{where}: norm_activation is {how!r}, which is not part of the weights: it cannot be evaluated"
        )
    norm = f"{NORM}.{settings.get('hook_point_in')}" if how == "dataset-wise" else None
    layout = _layout(safetensors_shapes(path), arch, norm, bias=bool(settings.get("use_decoder_bias", True)))
    d_in, d_sae = check_shapes(path, safetensors_shapes(path, layout), layout)
    k = whole_number(where, "top_k", settings.get("top_k", 50), d_sae) if arch == "topk" else None
    notes = unread(where, settings, KNOWN)
    return ForeignSAE(
        FORMAT, source, arch, d_in, d_sae, place, lambda: _load(path, layout, norm, settings), k, notes=notes
    )


def check_settings(where: Path, settings: Mapping[str, Any]) -> Place:
    """Refuse what no built-in architecture computes; the hook that an SAE reads and predicts.

    Raises:
        UserError: it is a transcoder, or its encoder is gated by another one.
    """
    reads, writes = settings.get("hook_point_in"), settings.get("hook_point_out")
    if writes not in (None, reads):
        raise UserError(f"{where}: it reads {reads} and predicts {writes}: it is a transcoder, no autoencoder, and "
                        "cannot be evaluated")  # fmt: skip
    if settings.get("use_glu_encoder"):
        raise UserError(f"{where}: use_glu_encoder is {settings['use_glu_encoder']!r}: a sigmoid gates its latents, so "
                        "it cannot be evaluated")  # fmt: skip
    return Place() if reads is None else place_of_hook(str(reads)).read_in(where.name)


def _layout(shapes: Shapes, arch: str, norm: str | None, *, bias: bool) -> Layout:
    names = dict(LINEAR if "encoder.weight" in shapes else PLAIN)
    if not bias:
        names = {name: sizes for name, sizes in names.items() if OURS[name] != "b_dec"}
    if arch == "jumprelu":
        older = "log_jumprelu_threshold"
        names[older if older in shapes else f"activation_function.{older}"] = ("d_sae",)
    return names | ({norm: ()} if norm else {})


def _load(path: Path, layout: Layout, norm: str | None, settings: Mapping[str, Any]) -> Weights:
    found = load_checked(path, layout)
    weights = by_our_names(found)
    scale = math.sqrt(len(weights["b_dec"])) / positive(path, norm, float(found[norm])) if norm else 1.0
    threshold = next((value for name, value in found.items() if name.endswith("log_jumprelu_threshold")), None)
    weights = on_raw_activations(weights, scale, settings)
    if threshold is not None:  # it applies to latents times norms already
        weights["threshold"] = (threshold.double().exp() / scale).float()
    return weights


def by_our_names(found: Weights) -> Weights:
    """Matrices and biases by our names, as they lie here; where there is no decoder bias it is zero."""
    weights = {OURS[name]: value.t() if name in LINEAR else value for name, value in found.items() if name in OURS}
    return {"b_dec": torch.zeros(weights["W_dec"].shape[1]), **weights}


def on_raw_activations(weights: Weights, scale: float, settings: Mapping[str, Any]) -> Weights:
    """Fold in the scale c of the input, a bias that the encoder may subtract, and the norms that latents pass with."""
    weights = weights | {name: (weights[name].double() / scale).float() for name in ("b_enc", "b_dec")}
    if settings.get("apply_decoder_bias_to_pre_encoder"):
        weights = without_input_bias(weights)
    return with_norms_folded(weights) if settings.get("sparsity_include_decoder_norm", True) else weights
