"""Every spelling of a place that the peers' own code writes, measured by us where they would measure it.

For each, one of their SAEs is made for what a plain hook sees on the module that its tool means, saved by the
tool in the layout that says so, and reconstructed by the tool. We read the files alone: the site, the activations there
and the reconstruction are ours. Both fractions of variance explained have to agree, and differ from another module's.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from common import Worker
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_bench.formats.open import find_sources, open_sae
from sae_bench.lm.hooks import Side, intercept
from sae_bench.lm.model import LanguageModel
from sae_bench.runs.config import RunConfig
from sae_bench.runs.places import locate

BOUND = 1e-4
"""Largest difference of two fractions of variance explained, relative to them where they are beyond one."""

WIDTH = 1024
K = 32

LAYER = "model.layers.9"
POST_MLP, POST_ATTENTION = f"{LAYER}.post_feedforward_layernorm", f"{LAYER}.post_attention_layernorm"

PLACES: tuple[tuple[str, str, str, str, Side], ...] = (
    ("SAELens", "standard", "blocks.9.hook_resid_post", LAYER, "output"),
    ("SAELens", "standard", "blocks.9.hook_resid_pre", LAYER, "input"),
    ("SAELens", "standard", "blocks.9.hook_resid_mid", f"{LAYER}.pre_feedforward_layernorm", "input"),
    ("SAELens", "standard", "blocks.9.hook_mlp_out", POST_MLP, "output"),
    ("SAELens", "standard", "blocks.9.hook_attn_out", POST_ATTENTION, "output"),
    ("SAELens", "standard", "blocks.9.attn.hook_z", f"{LAYER}.self_attn.o_proj", "input"),
    ("SAELens", "standard", "model.layers.9.mlp", f"{LAYER}.mlp", "output"),
    ("dictionary_learning", "AutoEncoderTopK", "resid_post_layer_9", LAYER, "output"),
    ("dictionary_learning", "AutoEncoderTopK", "model.layers.9.self_attn", f"{LAYER}.self_attn", "output"),
    ("dictionary_learning", "MatryoshkaBatchTopKSAE", "model.layers[9].mlp", f"{LAYER}.mlp", "output"),
    ("sparsify", "sparsify", "layers.9", LAYER, "output"),
    ("sparsify", "sparsify", "layers.9.mlp", f"{LAYER}.mlp", "output"),
    ("sparsify", "sparsify", "layers.9.self_attn.o_proj", f"{LAYER}.self_attn.o_proj", "output"),
)
"""Tool, its class, what it writes, and the module and side that it means, in Gemma 3."""


def parts_of(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """An SAE of no training for these activations, with all that any architecture takes; rows of many lengths."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows = torch.nn.functional.normalize(draw(WIDTH, x.shape[1]), dim=1)
    mean = x.mean(0)
    deviation = ((x - mean) @ rows.T).std(0)
    return {
        "W_enc": rows.T.contiguous(), "W_dec": rows * (0.5 + draw(WIDTH, 1).abs()), "b_dec": mean,
        "b_enc": 0.3 * deviation * draw(WIDTH), "threshold": deviation * (0.5 + draw(WIDTH).abs()),
        "r_mag": 0.3 * draw(WIDTH), "b_mag": 0.3 * deviation * draw(WIDTH),
        "b_gate": deviation * (draw(WIDTH) - 1), "scalar": deviation.mean(), "k": torch.tensor(K),
    }  # fmt: skip


@torch.no_grad()
def compare_places(
    lm: LanguageModel, tokens: Tensor, workers: Mapping[str, Worker], work: Path
) -> Iterator[tuple[str, float, float, bool]]:
    """What is compared, our FVE and theirs, and whether they agree."""
    config = RunConfig.build({"model": "demo", "saes": [{"source": "theirs", "sha256": ""}]})
    for tool, kind, spelling, module, side in PLACES:
        found: list[Tensor] = []
        with intercept(lm.model.get_submodule(module), side, found.append):
            lm.model(input_ids=tokens, use_cache=False)
        x = found[0][:, 1:].flatten(0, 1).contiguous()  # without the BOS
        save_file({"x": x}, work / "place.safetensors")
        save_file(parts_of(x), work / "place_parts.safetensors")
        folder = work / "theirs" / "places" / (spelling if tool == "sparsify" else f"{tool}.{spelling}")
        workers[tool].ask(do="make", folder=str(folder), kind=kind, x=str(work / "place.safetensors"), place=spelling,
                          out=str(work / "out"), parts=str(work / "place_parts.safetensors"))  # fmt: skip
        (source,) = find_sources(str(folder))
        sae = open_sae(source)
        site = locate(lm, config, sae).site
        ours = lm.capture(tokens, [site])[site][:, 1:].flatten(0, 1)
        mine, theirs = fve(ours, sae.build()(ours)), fve(x, load_file(work / "out")["x_hat"])
        yield f"{tool}'s {spelling}", mine, theirs, abs(mine - theirs) < BOUND * max(1, abs(theirs))


def fve(x: Tensor, x_hat: Tensor) -> float:
    """1 - sum |x - x_hat|^2 / sum |x - mean|^2."""
    return float(1 - (x - x_hat).double().pow(2).sum() / (x - x.mean(0)).double().pow(2).sum())
