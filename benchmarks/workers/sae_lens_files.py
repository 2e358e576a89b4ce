"""SAELens's files: `SAE.load_from_disk` and `save_model`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens import (  # type: ignore[import-not-found]
    SAE,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from torch import Tensor

from workers.files import Compute, serve_files, set_parameters

CLASSES: dict[str, tuple[Any, Any, list[str]]] = {
    "standard": (StandardSAE, StandardSAEConfig, ["b_enc"]),
    "topk": (TopKSAE, TopKSAEConfig, ["b_enc"]),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, ["b_enc", "threshold"]),
    "gated": (GatedSAE, GatedSAEConfig, ["b_gate", "b_mag", "r_mag"]),
}


def computing(sae: Any) -> Compute:
    return lambda x: (sae.encode(x), sae(x))


def load(folder: Path, kind: str) -> Compute:
    sae = SAE.load_from_disk(folder)
    assert sae.cfg.architecture() == kind, f"{sae.cfg.architecture()}, not {kind}"
    return computing(sae)


def make(folder: Path, kind: str, parts: Mapping[str, Tensor], place: str | None) -> Compute:
    sae_class, config_class, own = CLASSES[kind]
    d_in, d_sae = parts["W_enc"].shape
    more = {"k": int(parts["k"]), "rescale_acts_by_decoder_norm": True} if kind == "topk" else {}
    sae = sae_class(config_class(d_in=d_in, d_sae=d_sae, **more))
    set_parameters(sae, {name: parts[name] for name in ("W_enc", "W_dec", "b_dec", *own)})
    sae.cfg.metadata.hook_name = place or "blocks.9.hook_resid_post"
    sae.save_model(folder)
    return computing(sae)


if __name__ == "__main__":
    serve_files(load, make, ["sae-lens", "torch"])
