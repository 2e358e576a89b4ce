"""A finished SAE as files: its weights, its training log, and a sealed description with the checksum of each file."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from sae_bench._version import __version__
from sae_bench.errors import UserError
from sae_bench.records.files import read_sealed, sha256, write_bytes, write_sealed, write_text
from sae_bench.records.run_folder import SAE_DESCRIPTION
from sae_bench.records.schema import SAEDescription
from sae_bench.registry import ARCHITECTURES
from sae_bench.saes.base import SAEConfig, SparseAutoencoder

WEIGHTS = "sae_weights.safetensors"
LOG = "metrics.jsonl"


def save_sae(
    folder: Path,
    sae: SparseAutoencoder,
    description: SAEDescription | None,
    metadata: Mapping[str, Any],
    log: Iterable[Mapping[str, float | int]],
    config_hash: str = "",
    beside: Sequence[str] = (),
) -> None:
    """Save a folded SAE with what trained it, if anybody will ask, and its training log.

    Files that were written `beside` them are sealed with it; what else the folder may hold is somebody else's.
    """
    failed = description and description.training.failure
    assert sae.folded or failed, "only folded SAEs, which take raw activations, leave the trainer"
    write_bytes(folder / WEIGHTS, save({name: value.cpu().contiguous() for name, value in sae.stored().items()}))
    write_text(folder / LOG, "".join(_json_line(row) for row in log))
    write_sealed(
        folder / SAE_DESCRIPTION,
        {
            "version": __version__,
            "config_hash": config_hash,
            "arch": sae.name,
            "config": sae.config.model_dump(mode="json"),
            "sha256": sha256(folder / WEIGHTS),
            "files": {name: sha256(folder / name) for name in sorted((WEIGHTS, LOG, *beside))},
            "description": description.as_json() if description else {},
            "metadata": dict(metadata),
        },
    )


def _json_line(row: Mapping[str, float | int]) -> str:
    """One logged step; null stands for what is not finite, as the loss of a run that diverged."""
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def load_sae(folder: Path, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """Load an SAE that `save_sae` wrote; it takes raw activations.

    Raises:
        UserError: a file is missing, or the weights are not the ones that were saved.
    """
    own = read_sealed(folder / SAE_DESCRIPTION)
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is missing: delete {folder} and run the same command again")
    if sha256(path) != own["sha256"]:
        raise UserError(
            f"{path} is not what was saved (checksum differs): delete {folder} and run the same command again"
        )
    sae = ARCHITECTURES[own["arch"]](SAEConfig(**own["config"]))
    return sae.load_stored(load_file(path)).to(device)


def write_training(folder: Path, **facts: Any) -> None:
    """Say something else of how a saved SAE was trained."""
    own = read_sealed(folder / SAE_DESCRIPTION)
    own["description"]["training"] |= facts
    write_sealed(folder / SAE_DESCRIPTION, own)


def description_of(folder: Path) -> SAEDescription:
    """What a saved SAE is and what trained it."""
    own = read_sealed(folder / SAE_DESCRIPTION)
    return SAEDescription.read({**own["description"], "weights_sha256": own["sha256"]}, folder / SAE_DESCRIPTION)
