"""A run's folder: what is in it, and how it gets there whole or not at all.

    runs/<name>/run.json                         configuration, plan
                checkpoints/<step>/              the last two of the training under way, or of its end
                checkpoints/<cell>/<step>/       those of each cell of a run that is worked on in many
                cells.json                       which SAEs each cell has
                logs/<cell>.log, driver.log      what was said there, without secrets
                saes/<sae>/sae_weights.safetensors, cfg.json (SAELens v6 where it knows the architecture)
                           sae_bench.json         what trained it, and how to load it again
                           metrics.jsonl          its training log
                records/<sae>.<task>.json         one per (SAE, task)
                latents/<sae>/<latent>.json       where sampled latents fire, what they were explained by
                collections/<sae>.json            which those are; written last
                leaderboard.md .csv .tex          a pure function of the records
                drawn.json                        what was drawn, with hashes: what may be drawn over
                saebench/<sae>_..._results.json   with --emit saebench
                .lock                             who works in the folder

Stages talk through these files alone. Every file is written beside its name and renamed onto it, so a stage that dies
leaves what was finished and nothing half-written (`files`). run.json, sae_bench.json and records are sealed: they hold
a checksum of themselves, and one that does not match counts as missing.
"""

import glob
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from sae_bench.errors import UserError
from sae_bench.records.files import Damaged, is_temporary, read_sealed, sha256, write_sealed
from sae_bench.records.many import read_records
from sae_bench.records.names import file_name
from sae_bench.records.ownership import Ownership, remove, remove_torn, walk
from sae_bench.records.schema import Record, read_record

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

T = TypeVar("T")

SAE_DESCRIPTION = "sae_bench.json"
BEFORE_THE_MANIFEST = (".lock", "cells.json", "logs", "tensorboard", "wandb")
"""What a run may write before it says whose folder it is."""


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_free(self, hashes: Collection[str] = ()) -> None:
        """See that the folder is free, or holds a run; one whose run.json is lost was made with one of these hashes.

        Raises:
            UserError: it is a file, or holds something else, or a lost run with other settings.
        """
        if self.manifest() is not None:
            return
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file: choose a folder")
        made_with = Ownership(self.path).made_with
        if made_with and made_with.isdisjoint(hashes):
            raise UserError(
                f"--out {self.path} holds a run with other settings, whose run.json is lost: choose another --out, or "
                "--overwrite to delete it"
            )
        for path in () if made_with else walk(self.path):
            name = path.relative_to(self.path).parts[0]
            lost = name == "run.json" and not path.read_bytes().strip(b"\0")  # nothing is in it that anybody could miss
            if name not in BEFORE_THE_MANIFEST and not lost and not is_temporary(path.name):
                raise UserError(f"--out {self.path} is not empty and holds no run: choose another --out")

    def check_clear(self) -> list[Path]:
        """See that `clear` has a run to delete, or nothing to do, and return the files that are the run's.

        Raises:
            UserError: there is something, but no run; or something is where the next run would take it for its own.
        """
        owned = Ownership(self.path)
        if not owned.made_with:
            self.check_free()
            return []
        owned.check_deletable()
        return owned.files

    def clear(self) -> None:
        """Delete the run in this folder, and nothing else that may be there.

        Raises:
            UserError: there is something, but no run; or something is where the next run would take it for its own.
        """
        remove(self.path, self.check_clear())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that works in the folder; the system lets go when a process dies.

        Raises:
            UserError: another one does, on this machine or another.
        """
        with self._open_lock() as file:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            if (self.path / "run.json").exists():
                remove_torn(self.path)
            try:
                yield
            finally:
                self._lock.unlink(missing_ok=True)
                if not self._content():
                    self.path.rmdir()

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def _open_lock(self) -> TextIO:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # No link is followed: the folder may come from elsewhere, and what the lock is, is emptied.
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            file = os.fdopen(descriptor, "r+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self._lock}: {error.strerror}; choose another --out") from None
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise UserError(f"--out {self.path} is in use by {owner}: wait for it, or choose another --out") from None
        except OSError as error:  # a file system without locks
            log.warning("%s cannot be locked (%s): see that no other process works there", self.path, error.strerror)
        try:
            if os.fstat(file.fileno()).st_ino == self._lock.stat().st_ino:
                return file
        except FileNotFoundError:
            pass
        file.close()  # its owner has just removed it
        return self._open_lock()

    def _content(self) -> list[Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else []

    def manifest(self) -> dict[str, Any] | None:
        """What run.json says; None if there is none, or it is damaged."""
        return _read_or_warn(self.path / "run.json")

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_sealed(self.path / "run.json", manifest)

    def cells(self) -> dict[str, list[str]]:
        """The SAEs of each cell, if the run is worked on in many."""
        found: dict[str, Any] = _read_or_warn(self.path / "cells.json") or {"cells": {}}
        return {_part(cell): list(saes) for cell, saes in found["cells"].items()}

    def write_cells(self, cells: Mapping[str, Sequence[str]]) -> None:
        write_sealed(self.path / "cells.json", {"cells": {cell: list(saes) for cell, saes in cells.items()}})

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    def sae_path(self, sae_id: str) -> Path:
        return self.path / "saes" / _part(sae_id)

    def record_path(self, sae_id: str, task: str) -> Path:
        return self.path / "records" / f"{_part(sae_id)}.{_part(task)}.json"

    def record_paths(self, sae_id: str) -> list[Path]:
        """Those of an SAE's records that there are."""
        return sorted((self.path / "records").glob(f"{glob.escape(_part(sae_id))}.*.json"))

    def latents_path(self, sae_id: str) -> Path:
        return self.path / "latents" / _part(sae_id)

    def collection_path(self, sae_id: str) -> Path:
        return self.path / "collections" / f"{_part(sae_id)}.json"

    def collection(self, sae_id: str) -> dict[str, Any] | None:
        """Which latents were collected and from what; None if that did not end, or is damaged."""
        return _read_or_warn(self.collection_path(sae_id))

    def drop_latents(self, sae_id: str, *, but: Collection[int] = (), collection: bool = True) -> None:
        """Delete what was collected of an SAE, `but` some latents, and first what says that it is whole."""
        if collection:
            self.collection_path(sae_id).unlink(missing_ok=True)
        files = [path for path in self.latents_path(sae_id).glob("*.json") if path.stem.isdecimal()]
        remove(self.path, [path for path in files if int(path.stem) not in but])

    def has_sae(self, sae_id: str, config_hash: str) -> bool:
        """Whether the SAE is finished, whole, and of these settings: its description is written last."""
        folder = self.sae_path(sae_id)
        description = _read_or_warn(folder / SAE_DESCRIPTION)
        if description is None or description["config_hash"] != config_hash:
            return False
        damaged = changed_file(folder, description)
        if damaged:
            log.warning("%s is damaged: it counts as missing", folder / damaged)
        return not damaged

    def record(self, sae_id: str, task: str) -> Record | None:
        """A record; None if there is none, or it is damaged."""
        return _read_or_warn(self.record_path(sae_id, task), read_record)

    def drop_stale_records(self, sae_id: str) -> None:
        """Delete the records and latents of an SAE that were made from weights which are no longer there."""
        digest = read_sealed(self.sae_path(sae_id) / SAE_DESCRIPTION)["sha256"]
        for path in self.record_paths(sae_id):
            record = _read_or_warn(path, read_record)
            if record is None or record.sae.weights_sha256 != digest:
                path.unlink()
        collection = self.collection(sae_id)
        if collection is None or collection["settings"]["weights_sha256"] != digest:
            self.drop_latents(sae_id)

    def records(self) -> list[Record]:
        """All records, in the order of their names.

        Raises:
            Damaged: one is not what was written.
            UserError: one is ill-typed, or of a later version of the harness.
        """
        paths = (self.path / "records").glob("*.json")
        return read_records(sorted(paths, key=lambda path: path.name))


def _part(name: str) -> str:
    """A name, be it read from a file, that leads nowhere but into the folder where it is put."""
    if name != file_name(name):
        raise UserError(f'"{name}" is no name of an SAE or a task: delete what names it so')
    return name


def changed_file(folder: Path, description: Mapping[str, Any]) -> str | None:
    """The first file of an SAE that is not what its description says, if there is one."""
    for name, digest in description["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            return str(name)
    return None


def _read_or_warn(path: Path, read: Callable[[Path], T] = read_sealed) -> T | None:  # type: ignore[assignment]
    if not path.exists():
        return None
    try:
        return read(path)
    except Damaged:
        log.warning("%s is damaged: it counts as missing", path)
        return None
