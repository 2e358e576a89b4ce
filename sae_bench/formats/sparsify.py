"""sparsify's folder, `cfg.json` and `sae.safetensors`: topk, with b_dec subtracted before the encoder.

W_dec lies as ours does, the encoder as torch's Linear has it: transposed. Its other activations, skip connections and
transcoders, which predict one site from another, are refused.
"""

import re
from pathlib import Path

from safetensors.torch import save

from sae_bench.errors import UserError
from sae_bench.formats.foreign import (
    About,
    ForeignSAE,
    Source,
    check_shapes,
    load_checked,
    unread,
    whole_number,
    with_input_bias,
    without_input_bias,
)
from sae_bench.formats.headers import read_settings, safetensors_shapes
from sae_bench.formats.hook_names import EMBEDDING, PATH, Place, place_of_module, place_of_path
from sae_bench.records.files import write_bytes, write_json
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.convert import Weights

FORMAT = "sparsify"
FILES = ("cfg.json", "sae.safetensors")
HOLDS = ("topk",)
KNOWN = (
    "activation|d_in|d_out|num_latents|expansion_factor|k|normalize_decoder|multi_topk|skip_connection|transcode|signed"
)
"""Settings that are read here, or that change nothing once it is trained; a regular expression."""
LAYOUT = {
    "encoder.weight": ("d_sae", "d_in"), "encoder.bias": ("d_sae",), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)
}  # fmt: skip


def read(source: Source) -> ForeignSAE:
    """See what a folder of sparsify holds."""
    where, settings = source.files["cfg.json"], read_settings(source.files["cfg.json"])
    activation = settings.get("activation", "topk")
    if activation != "topk":
        raise UserError(f"{where}: activation {activation!r} is not topk: it cannot be evaluated")
    for name in ("transcode", "skip_connection", "signed"):
        if settings.get(name):
            raise UserError(f"{where}: {name} is {settings[name]!r}, so it is no autoencoder with latents >= 0: "
                            "it cannot be evaluated")  # fmt: skip
    path = source.files["sae.safetensors"]
    d_in, d_sae = check_shapes(path, safetensors_shapes(path, LAYOUT), LAYOUT)
    k = whole_number(where, "k", settings.get("k"), d_sae)
    notes = unread(where, settings, KNOWN)
    return ForeignSAE(FORMAT, source, "topk", d_in, d_sae, _place(source.name), lambda: _load(path), k, notes=notes)


def _place(name: str) -> Place:
    """The hookpoint that names the folder, a module of the model's body; below it there may be one folder a seed."""
    parts = [part for part in name.rstrip("/").split("/") if not re.fullmatch(r"seed\d+", part) and part not in FILES]
    if residual := re.fullmatch(r"(?:layers|h)\.(\d+)", parts[-1]):
        return Place("resid_post", int(residual[1])).read_in(PATH)
    if "." in parts[-1] or EMBEDDING.search(parts[-1]):
        return place_of_module(parts[-1]).read_in(PATH)
    return place_of_path(name)


def _load(path: Path) -> Weights:
    weights = load_checked(path, LAYOUT)
    encoder = {"W_enc": weights.pop("encoder.weight").T, "b_enc": weights.pop("encoder.bias")}
    return without_input_bias(weights | encoder)


def write(folder: Path, sae: SparseAutoencoder, about: About) -> Path:
    """Write a topk SAE as sparsify does, in a folder named by the hookpoint."""
    site = about.site
    folder = folder / (f"layers.{site['layer']}" if site["kind"] == "resid_post" else str(site["path"]))
    weights = with_input_bias({name: value.cpu() for name, value in sae.stored().items()})
    tensors = {
        "encoder.weight": weights["W_enc"].T.contiguous(), "encoder.bias": weights["b_enc"],
        "W_dec": weights["W_dec"].contiguous(), "b_dec": weights["b_dec"],
    }  # fmt: skip
    write_bytes(folder / "sae.safetensors", save(tensors))
    k = int(sae.config.sparsity)
    write_json(
        folder / "cfg.json",
        {
            "activation": "topk", "d_in": sae.config.d_in, "num_latents": sae.config.d_sae, "k": k,
            "expansion_factor": sae.config.d_sae // sae.config.d_in, "normalize_decoder": True, "multi_topk": False,
            "skip_connection": False, "transcode": False,
        },
    )  # fmt: skip
    return folder
