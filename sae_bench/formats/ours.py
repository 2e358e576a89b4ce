"""Our own runs' SAEs: `sae_bench.json` says what trained them and which architecture reads the weights beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError
from sae_bench.formats.foreign import ForeignSAE, Weights, check_shapes, load_checked
from sae_bench.formats.headers import damaged, regular, safetensors_headers
from sae_bench.formats.hook_names import Place
from sae_bench.formats.source import Source
from sae_bench.records.files import read_sealed, sha256
from sae_bench.records.names import file_name
from sae_bench.registry import ARCHITECTURES
from sae_bench.saes.base import SAEConfig

FORMAT = "sae-arch-bench"
FILES = ("sae_bench.json", "sae_weights.safetensors")
LAYOUT = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}


def read(source: Source) -> ForeignSAE:
    """See what an SAE's folder of a run holds."""
    description, path = source.files["sae_bench.json"], source.files["sae_weights.safetensors"]
    with regular(description):  # no link
        own = read_sealed(description)
    d_in, d_sae = check_shapes(path, safetensors_headers(path), LAYOUT)
    try:
        # A seal shows damage, not forgery: anybody can write one.
        config, arch, about = SAEConfig(**own["config"]), str(own["arch"]), own["description"]
        if (config.d_in, config.d_sae) != (d_in, d_sae):
            raise ValueError(f"it says {config.d_in} and {config.d_sae}, the weights are {d_in} and {d_sae} wide")
        if about["id"] != file_name(about["id"]):
            raise ValueError("its id is no name of a folder")
        place = _place(about["site"], own["metadata"].get("model_name"))
        failure = about.get("training", {}).get("failure")
        digest = str(own["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(description, f"{type(error).__name__}: {error}") from None
    return ForeignSAE(
        FORMAT, source.name, arch, d_in, d_sae, place, lambda: _load(path, arch, digest, failure), own=own,
        hub_commit=source.hub_commit,
    )  # fmt: skip


def _place(site: Mapping[str, Any], model: object) -> Place:
    kind, layer = str(site["kind"]), int(site["layer"])
    if kind.startswith("path:"):
        kind = f"path:{site['path']}@{site['side']}"
    return Place(kind, layer, model if isinstance(model, str) else None)


def _load(path: Path, arch: str, digest: str, failure: str | None) -> Weights:
    if failure:
        raise UserError(f"{path} failed in training and has no weights worth evaluating: {failure}")
    if sha256(path) != digest:
        raise UserError(f"{path} is not what was saved (its checksum differs): get it again")
    names = {theirs: name for name, theirs in ARCHITECTURES[arch].saelens_names.items()}
    return {names.get(name, name): value for name, value in load_checked(path, safetensors_headers(path)).items()}
