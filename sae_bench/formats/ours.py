"""Our own runs' SAEs: `sae_bench.json` says what trained them and which architecture reads the weights beside it.

A `cfg.json` makes a folder of SAELens's of it, where the weights are such that SAELens can read them.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError
from sae_bench.formats import saelens
from sae_bench.formats.foreign import ForeignSAE, Layout, Source, check_shapes, load_checked
from sae_bench.formats.headers import Shapes, damaged, regular, safetensors_shapes
from sae_bench.formats.hook_names import Place
from sae_bench.records.files import read_sealed, sha256, write_json
from sae_bench.records.names import file_name
from sae_bench.records.run_folder import SAE_DESCRIPTION
from sae_bench.records.schema import SAEDescription
from sae_bench.saes.base import SAEConfig, SparseAutoencoder
from sae_bench.saes.convert import Weights
from sae_bench.saes.save import WEIGHTS, save_sae

FORMAT = "sae-arch-bench"
FILES = (SAE_DESCRIPTION, WEIGHTS)


def read(source: Source) -> ForeignSAE:
    """See what an SAE's folder of a run holds."""
    description, path = source.files[SAE_DESCRIPTION], source.files[WEIGHTS]
    with regular(description):  # no link
        own = read_sealed(description)
    d_in, d_sae = check_shapes(path, shapes := safetensors_shapes(path), _layout(shapes))
    try:
        # A seal shows damage, not forgery: anybody can write one.
        config, arch, about = SAEConfig(**own["config"]), str(own["arch"]), own["description"]
        if (config.d_in, config.d_sae) != (d_in, d_sae):
            raise ValueError(f"it says {config.d_in} and {config.d_sae}, the weights are {d_in} and {d_sae} wide")
        if about["id"] != file_name(about["id"]):
            raise ValueError("its id is no name of a folder")
        site, model = about["site"], own["metadata"].get("model_name")
        kind = f"path:{site['path']}@{site['side']}" if str(site["kind"]).startswith("path:") else str(site["kind"])
        place = Place(kind, int(site["layer"]), model if isinstance(model, str) else None).read_in(description.name)
        centred = {"center_writing_weights": True} if site.get("centred") else {}
        failure = about.get("training", {}).get("failure")
        digest = str(own["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(description, f"{type(error).__name__}: {error}") from None
    load = partial(_load, path, digest, failure)
    return ForeignSAE(FORMAT, source, arch, d_in, d_sae, place, load, processing=centred, own=own)


def _load(path: Path, digest: str, failure: str | None) -> Weights:
    if failure:
        raise UserError(f"{path} failed in training and has no weights worth evaluating: {failure}")
    if sha256(path) != digest:
        raise UserError(f"{path} is not what was saved (its checksum differs): get it again")
    return load_checked(path, _layout(safetensors_shapes(path)), every=True)


def _layout(shapes: Shapes) -> Layout:
    """What every SAE has: both matrices, or a decoder that is the encoder too."""
    return saelens.COMMON if "W_enc" in shapes else saelens.TIED


def write(
    folder: Path,
    sae: SparseAutoencoder,
    description: SAEDescription | None,
    metadata: Mapping[str, Any],
    log: Iterable[Mapping[str, float | int]] = (),
    config_hash: str = "",
) -> None:
    """Write an SAE of a run: as `save_sae` does, in a form that SAELens reads too where it can."""
    beside = []
    if saelens.holds(sae):
        write_json(folder / saelens.CONFIG, saelens.config_of(sae, metadata))
        beside = [saelens.CONFIG]
    save_sae(folder, sae, description, metadata, log, config_hash, beside)
