"""What decides the bits of a run's activations, and so which folder of a cache they are in.

    DIR/<model>.<digest>/manifest.json      sealed: all of it, and the hash of the weights once they were loaded
                         <site>/            shards

A folder for each: a run never meets activations of another model, corpus, dtype or version, and deletes none.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from sae_bench.errors import UserError
from sae_bench.records.files import Damaged, digest_of, read_sealed, sha256, write_sealed
from sae_bench.records.names import file_name

log = logging.getLogger(__name__)

FORMAT = 1
"""Of a cache's files; raised when they change."""

MANIFEST = "manifest.json"


def files_digest(source: str, revision: str | None) -> str | None:
    """SHA-256 (hex) over the files of a model's folder, or of the hub's on this machine; None where there are none.

    Weights, configuration, tokenizer and code: whatever is there but documentation. About a second for a gigabyte.
    """
    folder = Path(source)
    if not folder.is_dir():
        config = try_to_load_from_cache(source, "config.json", revision=revision)
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.suffix != ".md" and not path.name.startswith("."):
            whole.update(f"{path.name} {sha256(path)}\n".encode())
    return whole.hexdigest()


def folder_of(root: Path, identity: Mapping[str, Any]) -> Path:
    """Where the activations with this identity are."""
    return root / f"{file_name(Path(identity['model']).name)}.{digest_of(identity)[:12]}"


def known_hashes(root: Path, identity: Mapping[str, Any]) -> tuple[str, str] | None:
    """The hashes of weights and buffers of this identity, if a run has kept activations of it and said both.

    Raises:
        Damaged: the manifest is not what was written.
        UserError: it is another identity's.
    """
    path = folder_of(root, identity) / MANIFEST
    if not path.exists():
        return None
    found = read_sealed(path)
    hashes = found.get("model_sha256"), found.get("buffers_sha256")
    if not isinstance(found.get("identity"), Mapping) or (hashes[1] is not None and hashes[0] is None):
        raise Damaged(f"{path} is not what was written: delete its folder")
    if found["identity"] != identity:
        raise UserError(
            f"{path} is of another capture ({_differences(identity, found['identity'])}): delete its folder, or choose "
            "another --activations-cache"
        )
    return None if hashes[1] is None else (str(hashes[0]), str(hashes[1]))


def write_manifest(root: Path, identity: Mapping[str, Any], weights: str, buffers: str) -> None:
    """Say what the folder of this identity holds."""
    hashes = {"model_sha256": weights, "buffers_sha256": buffers}
    write_sealed(folder_of(root, identity) / MANIFEST, {"identity": dict(identity), **hashes})


def nearest_other(root: Path, identity: Mapping[str, Any]) -> str | None:
    """In what the activations differ, of those that are there, that differ least; None where there are none."""
    others = []
    for path in root.glob(f"*/{MANIFEST}"):
        try:
            others.append(read_sealed(path)["identity"])
        except (UserError, KeyError):
            log.warning("%s is not what was written: its folder is left alone", path)
    words = [_differences(identity, other) for other in others if isinstance(other, Mapping)]
    return min(words, key=lambda text: text.count(";"), default=None)


def _differences(identity: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    changed = [key for key in {**identity, **other} if identity.get(key) != other.get(key)]
    return "; ".join(f"{key}: {_short(other.get(key))} there, {_short(identity.get(key))} here" for key in changed)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:8]}..."
