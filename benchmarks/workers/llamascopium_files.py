"""llamascopium's folders: `save_pretrained` and what the SAE itself computes."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from llamascopium import SAEConfig, SparseAutoEncoder  # type: ignore[import-not-found]
from torch import Tensor

from workers.files import Compute, serve_files, set_parameters

HOOK = "blocks.9.hook_resid_post"
MEAN_NORM = 7.0


def load(folder: Path, kind: str) -> Compute:
    sae = SparseAutoEncoder.from_pretrained(str(folder), device="cpu", dtype=torch.float32)
    assert sae.cfg.act_fn == kind, f"{sae.cfg.act_fn}, not {kind}"
    scale = math.sqrt(sae.cfg.d_model) / sae.dataset_average_activation_norm[HOOK]

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        f = sae.encode(scale * x)
        # Latents as they pass, times norms; and all on the scale of raw activations, as ours are.
        return f * sae.decoder_norm() / scale, sae.decode(f) / scale

    return compute


def make(folder: Path, kind: str, parts: Mapping[str, Tensor], place: str | None) -> Compute:
    d_in, d_sae = parts["W_enc"].shape
    hook = place or HOOK
    config = SAEConfig(
        hook_point_in=hook, hook_point_out=hook, d_model=d_in, expansion_factor=d_sae / d_in, act_fn=kind,
        top_k=int(parts["k"]), device="cpu", dtype=torch.float32,
    )  # fmt: skip
    sae = SparseAutoEncoder(config)
    names = {"W_E": "W_enc", "b_E": "b_enc", "W_D": "W_dec", "b_D": "b_dec"}
    set_parameters(sae, {theirs: parts[name] for theirs, name in names.items()})
    if kind == "jumprelu":
        set_parameters(sae, {"activation_function.log_jumprelu_threshold": parts["threshold"].log()})
    sae.set_dataset_average_activation_norm({hook: MEAN_NORM})
    sae.save_pretrained(folder)
    config.save_hyperparameters(folder)
    return load(folder, kind)


if __name__ == "__main__":
    serve_files(load, make, ["llamascopium", "torch"])
