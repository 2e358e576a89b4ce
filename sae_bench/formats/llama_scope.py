"""Llama Scope's folder of 2024, `hyperparams.json` and `checkpoints/final.safetensors`; later ones are llamascopium's.

Weights are as in `llamascopium`, on activations brought to the norm sqrt(D) by a mean that is among the settings, and
folded in the same way. The threshold is one for all latents, and means latents times norms on raw activations: lm-saes,
which wrote them, folds first and compares then. A topk with a threshold is a jumprelu.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_bench.errors import UserError
from sae_bench.formats.foreign import ForeignSAE, Source, check_shapes, load_checked, positive, unread, whole_number
from sae_bench.formats.headers import read_settings, safetensors_shapes
from sae_bench.formats.hook_names import place_of_path
from sae_bench.formats.llamascopium import KNOWN, LINEAR, NORM, by_our_names, check_settings, on_raw_activations
from sae_bench.saes.convert import Weights

FORMAT = "llama-scope"
FILES = ("hyperparams.json", "checkpoints/final.safetensors")
THRESHOLD = "jump_relu_threshold"


def read(source: Source) -> ForeignSAE:
    """See what a folder of Llama Scope holds."""
    where, path = (source.files[name] for name in FILES)
    settings = read_settings(where)
    place = check_settings(where, settings).or_else(place_of_path(source.name))
    act_fn, theta = settings.get("act_fn", "relu"), settings.get(THRESHOLD, 0.0)
    arch = "jumprelu" if act_fn == "topk" and theta else act_fn
    if arch not in ("relu", "topk", "jumprelu"):
        raise UserError(f"{where}: act_fn {act_fn!r} is none of relu, topk, jumprelu: it cannot be evaluated")
    threshold = positive(where, THRESHOLD, theta) if arch == "jumprelu" else None
    bias = settings.get("use_decoder_bias", True)
    layout = {name: sizes for name, sizes in LINEAR.items() if bias or name != "decoder.bias"}
    d_in, d_sae = check_shapes(path, safetensors_shapes(path, layout), layout)
    scale = _scale(where, settings, d_in)
    k = whole_number(where, "top_k", settings.get("top_k"), d_sae) if arch == "topk" else None
    notes = unread(where, settings, KNOWN)

    def load() -> Weights:
        found = by_our_names(load_checked(path, layout))
        weights = on_raw_activations(found, scale, {"apply_decoder_bias_to_pre_encoder": True} | settings)
        return weights if threshold is None else weights | {"threshold": torch.full((d_sae,), threshold)}

    return ForeignSAE(FORMAT, source, arch, d_in, d_sae, place, load, k, notes=notes)


def _scale(where: Path, settings: Mapping[str, Any], d_in: int) -> float:
    """What activations were multiplied by; 1 if that is in the weights already."""
    how = settings.get("norm_activation", "token-wise")
    if how in ("none", "inference"):
        return 1.0
    if how != "dataset-wise":
        raise UserError(
            f"{where}: norm_activation is {how!r}, which is not part of the weights: it cannot be evaluated"
        )
    norms = settings.get(NORM)
    return math.sqrt(d_in) / positive(where, f"{NORM}.in", norms.get("in") if isinstance(norms, dict) else norms)
