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
    tensors = {name: w[name] for name in ("W_enc", "W_dec", "b_dec", *names)}
    if architecture.endswith("batchtopk"):  # a checkpoint of training
        tensors["topk_threshold"] = torch.tensor(0.7, dtype=torch.float64)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "sae_weights.safetensors")
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
        if architecture.endswith("batchtopk"):
            return jump(z, torch.tensor(0.7))
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


def linear(w: dict[str, Tensor], encoder: str = "encoder", decoder: str = "decoder") -> dict[str, Tensor]:
    """Matrices and biases as two of torch's Linear layers have them."""
    return {
        f"{encoder}.weight": w["W_enc"].T.contiguous(), f"{encoder}.bias": w["b_enc"],
        f"{decoder}.weight": w["W_dec"].T.contiguous(), f"{decoder}.bias": w["b_dec"],
    }  # fmt: skip


def write_gemma_scope_2(folder: Path, config: dict[str, object] | None = None, **more: Tensor) -> tuple[Path, Encode]:
    w = parts()
    below = folder / "gemma-scope-2-270m-pt" / "resid_post" / "layer_1_width_56_l0_small"
    below.mkdir(parents=True)
    named = {"w_enc": w["W_enc"], "w_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    save_file(named | {"threshold": w["threshold"]} | more, below / "params.safetensors")
    if config is not None:
        (below / "config.json").write_text(json.dumps(config))
    return below, lambda x: jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])


def write_qwen_scope(folder: Path, repository: str = f"SAE-Res-Qwen3-8B-Base-W64K-L0_{K}") -> tuple[Path, Encode]:
    w = parts()
    (folder / repository).mkdir(parents=True)
    turned = {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"].T.contiguous()}
    torch.save(turned | {name: w[name] for name in ("b_enc", "b_dec")}, folder / repository / "layer1.sae.pt")
    return folder / repository, lambda x: top_k(x @ w["W_enc"] + w["b_enc"])


def write_goodfire(folder: Path, name: str = "Llama-3.1-8B-Instruct-SAE-l1.pth") -> tuple[Path, Encode]:
    w = parts()
    folder = folder / "goodfire"
    folder.mkdir(parents=True)
    torch.save(linear(w, "encoder_linear", "decoder_linear"), folder / name)
    return folder, lambda x: (x @ w["W_enc"] + w["b_enc"]).relu()


MEAN_NORM = 9.0


def write_llama_scope(folder: Path, **settings: object) -> tuple[Path, Encode]:
    """As lm-saes of 2024 loads it: scale and norms are folded first, one threshold applies to what comes out."""
    w = parts()
    folder = folder / "Llama3_1-8B-Base-L1R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    config = {
        "hook_point_in": "blocks.1.hook_resid_post", "hook_point_out": "blocks.1.hook_resid_post", "d_model": D,
        "d_sae": F, "dtype": "torch.bfloat16", "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False,
        "act_fn": "jumprelu", "jump_relu_threshold": 0.7, "norm_activation": "dataset-wise", "top_k": K,
        "dataset_average_activation_norm": {"in": MEAN_NORM, "out": MEAN_NORM}, "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False, **settings,
    }  # fmt: skip
    tensors = linear(w)
    if not config["use_decoder_bias"]:
        del tensors["decoder.bias"]
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(config))

    def encode(x: Tensor) -> Tensor:
        scale = D**0.5 / MEAN_NORM
        x = scale * x - config["apply_decoder_bias_to_pre_encoder"] * w["b_dec"]
        z = (x @ w["W_enc"] + w["b_enc"]) / scale * w["W_dec"].norm(dim=1)
        return {"jumprelu": jump(z, torch.tensor(0.7)), "topk": top_k(z), "relu": z.relu()}[str(config["act_fn"])]

    return folder, encode


def write_llamascopium(folder: Path, act_fn: str = "jumprelu", **settings: object) -> tuple[Path, Encode]:
    """As llamascopium computes, on activations times c; what comes out is divided by it."""
    w = parts()
    folder = folder / "llamascopium"
    folder.mkdir(parents=True)
    hook = "blocks.1.hook_resid_post"
    config = {
        "sae_type": "sae", "d_model": D, "expansion_factor": F / D, "hook_point_in": hook, "hook_point_out": hook,
        "act_fn": act_fn, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "top_k": K,
        "use_decoder_bias": True, "use_glu_encoder": False, **settings,
    }  # fmt: skip
    tensors = {"W_E": w["W_enc"], "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"]}
    if act_fn == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = w["threshold"].log()
    tensors[f"dataset_average_activation_norm.{hook}"] = torch.tensor(MEAN_NORM)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))

    def encode(x: Tensor) -> Tensor:
        """Latents times the norms that they pass with."""
        c = D**0.5 / MEAN_NORM if config["norm_activation"] == "dataset-wise" else 1.0
        s = c * x @ w["W_enc"] + w["b_enc"]
        if config["sparsity_include_decoder_norm"]:
            s = s * w["W_dec"].norm(dim=1)
        return {"jumprelu": jump(s, w["threshold"]), "topk": top_k(s), "relu": s.relu()}[act_fn] / c

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
