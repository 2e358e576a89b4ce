"""SAEs in other people's formats, written as these write them, and what their authors compute from them.

Everything is random but the sizes, which differ, so that a transposed matrix shows. The formulas are written out here
on plain tensors and use nothing of ours.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, F, K = 32, 56, 5  # d_in is that of the tiny models' residual stream

Encode = Callable[[Tensor], Tensor]


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parts() -> dict[str, Tensor]:
    """W_enc, W_dec with rows of many lengths, biases of the size of pre-activations, thresholds above zero."""
    return {
        "W_enc": numbers(D, F, seed=1, scale=0.3), "W_dec": numbers(F, D, seed=2, scale=0.4),
        "b_enc": numbers(F, seed=3), "b_dec": numbers(D, seed=4), "threshold": numbers(F, seed=5).abs(),
        "r_mag": numbers(F, seed=6, scale=0.3), "b_mag": numbers(F, seed=7), "b_gate": numbers(F, seed=8),
    }  # fmt: skip


def top_k(z: Tensor) -> Tensor:
    largest = z.topk(K, dim=1)
    return torch.zeros_like(z).scatter(1, largest.indices, largest.values.relu())


def gated(z: Tensor, w: dict[str, Tensor]) -> Tensor:
    return (z + w["b_gate"] > 0) * (w["r_mag"].exp() * z + w["b_mag"]).relu()


def write_gemma_scope(folder: Path) -> tuple[Path, Encode]:
    w = parts()
    below = folder / "gemma-scope-2b-pt-res" / "layer_1" / "width_56" / "average_l0_9"
    below.mkdir(parents=True)
    np.savez(
        below / "params.npz", **{name: w[name].numpy() for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    )
    return below, lambda x: jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])


def jump(z: Tensor, threshold: Tensor) -> Tensor:
    return z.relu() * (z > threshold)


def write_saelens(folder: Path, architecture: str = "standard", **settings: object) -> tuple[Path, Encode]:
    w = parts()
    own = {"jumprelu": ["b_enc", "threshold"], "gated": ["b_gate", "b_mag", "r_mag"]}
    names = own.get(architecture, ["b_enc"])
    folder.mkdir(parents=True)
    save_file({name: w[name] for name in ("W_enc", "W_dec", "b_dec", *names)}, folder / "sae_weights.safetensors")
    config = {
        "architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        **({"k": K} if architecture == "topk" else {}), **settings,
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "tiny-gemma2",
                     "hook_name": "blocks.1.hook_resid_post"},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))

    def encode(x: Tensor) -> Tensor:
        z = (x - config["apply_b_dec_to_input"] * w["b_dec"]) @ w["W_enc"]
        if architecture == "gated":
            return gated(z, w)
        z = z + w["b_enc"]
        if config.get("rescale_acts_by_decoder_norm"):
            z = z * w["W_dec"].norm(dim=1)
        return {"standard": z.relu(), "topk": top_k(z), "jumprelu": jump(z, w["threshold"])}[architecture]

    return folder, encode


def write_dictionary_learning(folder: Path, name: str = "AutoEncoder", **changes: Tensor) -> tuple[Path, Encode]:
    w = parts()
    linear = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous()}
    scalar = torch.tensor(0.7)
    state = {
        "AutoEncoder": linear | {"encoder.bias": w["b_enc"], "bias": w["b_dec"]},
        "AutoEncoderNew": linear | {"encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]},
        "GatedAutoEncoder": linear | {"decoder_bias": w["b_dec"], "r_mag": w["r_mag"], "gate_bias": w["b_gate"],
                                      "mag_bias": w["b_mag"]},
        "AutoEncoderTopK": linear | {"encoder.bias": w["b_enc"], "b_dec": w["b_dec"], "k": torch.tensor(K),
                                     "threshold": torch.tensor(-1.0)},
        "BatchTopKSAE": linear | {"encoder.bias": w["b_enc"], "b_dec": w["b_dec"], "k": torch.tensor(K),
                                  "threshold": scalar},
        "MatryoshkaBatchTopKSAE": {key: w[key] for key in ("W_enc", "W_dec", "b_enc", "b_dec")} | {
            "threshold": scalar, "k": torch.tensor(K), "group_sizes": torch.tensor([F - 8, 8])},
        "JumpReluAutoEncoder": {key: w[key] for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")},
    }[name] | changes  # fmt: skip
    folder.mkdir(parents=True)
    torch.save(state, folder / "ae.pt")
    trainer = {"dict_class": name, "layer": 1, "lm_name": "tiny-gemma2", "submodule_name": "resid_post_layer_1", "k": K}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))

    def encode(x: Tensor) -> Tensor:
        z = (x - (0 if name in ("AutoEncoderNew", "JumpReluAutoEncoder") else w["b_dec"])) @ w["W_enc"]
        if name == "GatedAutoEncoder":
            return gated(z, w)
        z = z + w["b_enc"]
        return {
            "AutoEncoder": z.relu() * w["W_dec"].norm(dim=1), "AutoEncoderNew": z.relu(), "AutoEncoderTopK": top_k(z),
            "BatchTopKSAE": jump(z, scalar), "MatryoshkaBatchTopKSAE": jump(z, scalar),
            "JumpReluAutoEncoder": jump(z, w["threshold"]),
        }[name]  # fmt: skip

    return folder, encode


def write_sparsify(folder: Path, **settings: object) -> tuple[Path, Encode]:
    w = parts()
    folder = folder / "layers.1"
    folder.mkdir(parents=True)
    save_file(
        {
            "encoder.weight": w["W_enc"].T.contiguous(),
            "encoder.bias": w["b_enc"],
            "W_dec": w["W_dec"],
            "b_dec": w["b_dec"],
        },
        folder / "sae.safetensors",
    )
    config = {"activation": "topk", "d_in": D, "num_latents": F, "k": K, "transcode": False, **settings}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder, lambda x: top_k((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
