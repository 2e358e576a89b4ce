"""Gemma Scope's `params.npz`: f = relu(z) (z > threshold), z = x W_enc + b_enc, of raw x.

b_dec is not subtracted before the encoder and nothing is scaled, so the tensors are taken as they are.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_bench.formats.foreign import JUMPRELU, About, ForeignSAE, Source, check_shapes
from sae_bench.formats.headers import damaged, npz_shapes, regular
from sae_bench.formats.hook_names import place_of_path
from sae_bench.records.files import replacing
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.convert import Weights

FORMAT = "gemma-scope"
FILES = ("params.npz",)
HOLDS = ("jumprelu",)


def read(source: Source) -> ForeignSAE:
    """See what a params.npz holds."""
    path = source.files["params.npz"]
    d_in, d_sae = check_shapes(path, npz_shapes(path, JUMPRELU), JUMPRELU)
    return ForeignSAE(FORMAT, source, "jumprelu", d_in, d_sae, place_of_path(source.name), lambda: _load(path))


def _load(path: Path) -> Weights:
    check_shapes(path, npz_shapes(path, JUMPRELU), JUMPRELU)  # again, for the file may have changed
    try:
        with regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]).float() for name in JUMPRELU}
    except Exception as error:  # noqa: BLE001 (the checksum of a member, and whatever else zip and npy can have wrong)
        raise damaged(path, str(error)) from None


def write(folder: Path, sae: SparseAutoencoder, about: About) -> Path:
    """Write params.npz where Gemma Scope has it: layer_L/width_W/average_l0_N."""
    layer, l0 = about.site["layer"], round(about.l0 or 0)
    below = folder / f"layer_{layer}" / f"width_{width_name(sae)}" / f"average_l0_{l0}"
    weights: dict[str, Any] = {name: value.cpu().contiguous().numpy() for name, value in sae.stored().items()}
    path = below / "params.npz"
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **weights)
    return path


def width_name(sae: SparseAutoencoder) -> str:
    """How folders call a width: 16k for 16,384."""
    width = sae.config.d_sae
    return f"{width // 1024}k" if width % 1024 == 0 else str(width)
