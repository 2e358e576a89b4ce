"""Our own runs' SAEs: `sae_bench.json` says what trained them and which architecture reads the weights beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError
from sae_bench.files import read_sealed, sha256
from sae_bench.formats.foreign import ForeignSAE, Weights, check_shapes, load_checked
from sae_bench.formats.headers import regular, safetensors_headers
from sae_bench.formats.places import Place
from sae_bench.formats.source import Source
from sae_bench.registry import ARCHITECTURES
from sae_bench.sae import SAEConfig

FORMAT = "sae-arch-bench"
FILES = ("sae_bench.json", "sae_weights.safetensors")
LAYOUT = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}


def read(source: Source) -> ForeignSAE:
    """See what an SAE's folder of a run holds."""
    description, path = source.files["sae_bench.json"], source.files["sae_weights.safetensors"]
    with regular(description):  # no link
        own = read_sealed(description)
    d_in, d_sae = check_shapes(path, safetensors_headers(path), LAYOUT)
    config = SAEConfig(**own["config"])
    if (config.d_in, config.d_sae) != (d_in, d_sae):
        raise UserError(f"{path}: its matrices are {d_in} and {d_sae} wide, {description} says otherwise")
    site = own["description"]["site"]
    module = f"path:{site['path']}@{site['side']}"
    place = Place(site["kind"] if not site["kind"].startswith("path:") else module, site["layer"],
                  own["metadata"].get("model_name"))  # fmt: skip
    return ForeignSAE(
        FORMAT, source.name, own["arch"], d_in, d_sae, place, lambda: _load(path, own), own=own,
        hub_commit=source.hub_commit,
    )  # fmt: skip


def _load(path: Path, own: Mapping[str, Any]) -> Weights:
    if failure := own["description"].get("training", {}).get("failure"):
        raise UserError(f"{path} failed in training and has no weights worth evaluating: {failure}")
    if sha256(path) != own["sha256"]:
        raise UserError(f"{path} is not what was saved (its checksum differs): get it again")
    names = {theirs: name for name, theirs in ARCHITECTURES[own["arch"]].saelens_names.items()}
    return {names.get(name, name): value for name, value in load_checked(path, safetensors_headers(path)).items()}
