"""A finished SAE as files: its weights and their settings, in SAELens v6's layout where it knows the architecture."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from sae_bench import __version__
from sae_bench.errors import UserError
from sae_bench.records.files import read_sealed, sha256, write_bytes, write_json, write_sealed, write_text
from sae_bench.records.run_folder import SAE_DESCRIPTION
from sae_bench.records.schema import SAEDescription
from sae_bench.registry import ARCHITECTURES
from sae_bench.saes.base import SAEConfig, SparseAutoencoder

WEIGHTS = "sae_weights.safetensors"
FILES = (WEIGHTS, "cfg.json", "metrics.jsonl")
"""What an SAE's folder holds besides its description."""


def save_sae(
    folder: Path,
    sae: SparseAutoencoder,
    description: SAEDescription | None,
    metadata: Mapping[str, Any],
    log: Iterable[Mapping[str, float | int]],
    config_hash: str = "",
) -> None:
    """Save a folded SAE with what trained it, if anybody will ask, and its training log."""
    failed = description and description.training.failure
    assert sae.folded or failed, "only folded SAEs, which take raw activations, leave the trainer"
    names = sae.saelens_names
    tensors = {names.get(name, name): value.detach().cpu().contiguous() for name, value in sae.named_parameters()}
    weights = save(tensors)
    write_bytes(folder / WEIGHTS, weights)
    write_text(folder / "metrics.jsonl", "".join(_json_line(row) for row in log))
    if sae.saelens_architecture is not None:
        write_json(folder / "cfg.json", saelens_config(sae, metadata))
    write_sealed(
        folder / SAE_DESCRIPTION,
        {
            "version": __version__,
            "config_hash": config_hash,
            "arch": sae.name,
            "config": sae.config.model_dump(mode="json"),
            "sha256": sha256(folder / WEIGHTS),
            "files": {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name in FILES},
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
    ours = {theirs: name for name, theirs in sae.saelens_names.items()}
    tensors: dict[str, Tensor] = {ours.get(name, name): value for name, value in load_file(path).items()}
    sae.load_state_dict(tensors)
    sae.folded = True
    return sae.to(device).requires_grad_(False)


def description_of(folder: Path) -> SAEDescription:
    """What a saved SAE is and what trained it."""
    own = read_sealed(folder / SAE_DESCRIPTION)
    return SAEDescription.read({**own["description"], "weights_sha256": own["sha256"]}, folder / SAE_DESCRIPTION)


def saelens_config(sae: SparseAutoencoder, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """cfg.json as SAELens v6 reads it: scale and pre-encoder bias are folded into the weights."""
    return {
        "architecture": sae.saelens_architecture,
        "d_in": sae.config.d_in,
        "d_sae": sae.config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if metadata.get("hook_name", "").endswith("hook_z") else "none",
        **sae.saelens_settings(),
        "metadata": {"sae_lens_version": "6.0.0", "sae_lens_training_version": None, **metadata},
    }
