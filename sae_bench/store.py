"""A run's folder: what is in it, and how it gets there whole or not at all.

    runs/<name>/run.json                         configuration, plan, provenance
                saes/<sae>/sae_weights.safetensors, cfg.json (SAELens v6 where it knows the architecture)
                           sae_bench.json         what trained it, and how to load it again
                           metrics.jsonl          its training log
                records/<sae>.<task>.json         one per (SAE, task)
                leaderboard.md .csv .tex          a pure function of the records

Stages talk through these files alone. Every file is written beside its name and renamed onto it, so a stage that dies
leaves what was finished and nothing half-written.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError

SAE_DESCRIPTION = "sae_bench.json"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably: a temporary file, fsync, rename, fsync of the folder.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):  # where no file could be made there is none to remove
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}; free space or choose another --out") from error


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused, for no reader agrees on them."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run the same command again") from None


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, identity: Mapping[str, Any]) -> None:
        """Begin or continue a run with these settings.

        Raises:
            UserError: the folder holds a run with other settings, or something else.
        """
        manifest = self.path / "run.json"
        if manifest.exists():
            before = read_json(manifest)["config"]
            changed = [key for key in identity if before.get(key) != identity[key]]
            if changed:
                difference = "; ".join(f"{key}: {before.get(key)!r} -> {identity[key]!r}" for key in changed)
                raise UserError(
                    f"--out {self.path} holds a run with other settings ({difference}): choose another --out"
                )
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file: choose a folder")
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"--out {self.path} is not empty and holds no run: choose another --out")

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_json(self.path / "run.json", manifest)

    def sae_path(self, sae_id: str) -> Path:
        return self.path / "saes" / sae_id

    def record_path(self, sae_id: str, task: str) -> Path:
        return self.path / "records" / f"{sae_id}.{task}.json"

    def has_sae(self, sae_id: str) -> bool:
        """Whether the SAE is finished: its configuration is written last."""
        return (self.sae_path(sae_id) / SAE_DESCRIPTION).exists()

    def records(self) -> list[dict[str, Any]]:
        """All records, in the order of their names."""
        return [read_json(path) for path in sorted((self.path / "records").glob("*.json"))]
