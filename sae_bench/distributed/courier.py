"""Files between the run's folder and nodes that do not see it: each end of the way to the desk.

A cell gets the files that the run's folder has of it along with its task, and brings what it writes to the desk.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from sae_bench.distributed.desk import HandedIn, Report
from sae_bench.records.files import inside, write_bytes
from sae_bench.records.run_folder import SAE_DESCRIPTION, RunFolder
from sae_bench.training.checkpoint import MANIFEST


class Courier:
    """A node's end: brings what is new in its own folder to the driver, in the order in which it was written."""

    def __init__(self, folder: Path, desk: Any, known: Iterable[str]) -> None:
        self._folder, self._desk = folder, desk
        self._brought = {path: (folder / path).stat().st_mtime_ns for path in known}

    def bring(self) -> None:
        """Return when the driver has all of it."""
        now = {
            str(path.relative_to(self._folder)): path.stat().st_mtime_ns
            for path in self._folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }
        new = [path for path, written in now.items() if self._brought.get(path) != written]
        for path in sorted(new, key=lambda path: (now[path], Path(path).name in (MANIFEST, SAE_DESCRIPTION))):
            ray.get(self._desk.hand_in.remote(HandedIn(path, (self._folder / path).read_bytes())))
        for path in self._brought.keys() - now.keys():
            ray.get(self._desk.hand_in.remote(HandedIn(path, None)))
        self._brought = now


class Inbox:
    """The driver's end: writes what was handed in at the desk into the run's folder."""

    def __init__(self, folder: RunFolder, desk: Any) -> None:
        self._folder, self._desk = folder, desk
        self._written: list[int] = []

    def take(self) -> Mapping[str, Report]:
        """Write what cells have handed in, for as long as more comes, and return their reports."""
        while True:
            reports, files = ray.get(self._desk.come_by.remote(self._written))
            self._written = list(files)
            for file in files.values():
                self._write(file)
            if not files:
                return dict(reports)

    def _write(self, file: HandedIn) -> None:
        path = inside(self._folder.path, file.path)
        if file.content is not None:
            write_bytes(path, file.content)
            return
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def files_of(folder: RunFolder, cell: str, saes: Sequence[str]) -> dict[str, bytes]:
    """What the run's folder holds of a cell, by its path there."""
    own = folder.checkpoints_path / cell
    begun = [own] if own.is_dir() else [path for path in folder.checkpoints_path.glob("*") if path.name.isdigit()]
    paths = [folder.path / "logs" / f"{cell}.log", *begun]
    for sae in saes:
        paths += [folder.sae_path(sae), folder.latents_path(sae), folder.collection_path(sae)]
        paths += folder.record_paths(sae)
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder.path)): file.read_bytes() for file in files}
