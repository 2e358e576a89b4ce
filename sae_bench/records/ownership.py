"""Which files of a folder a run wrote: those that a seal covers, and those that a sealed file names.

People keep files of their own beside a run's, and link folders to other disks. What deletes, copies or publishes asks
here, and takes neither what nobody sealed nor what lies behind a link: a run writes none.
"""

import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError
from sae_bench.records.files import Damaged, is_temporary, read_sealed, sha256, write_bytes, write_sealed

log = logging.getLogger(__name__)

DRAWN = "drawn.json"
"""What was drawn in a folder, with the hash of each file, sealed."""

STAGES = ("records", "saes", "checkpoints", "latents", "collections")
"""Folders that stages read whatever they find in."""

EVENTS = "events.out.tfevents."
"""How TensorBoard's files begin."""


def walk(root: Path) -> Iterator[Path]:
    """Regular files below a folder, and links, none of which is followed."""
    for folder, below, names in os.walk(root):
        for name in [*names, *(name for name in below if (Path(folder) / name).is_symlink())]:
            path = Path(folder) / name
            if path.is_symlink() or path.is_file():
                yield path


def is_linked(root: Path, path: Path) -> bool:
    """Whether a path below a folder is a link, or leads through one."""
    parts = path.relative_to(root).parts
    return any(root.joinpath(*parts[: n + 1]).is_symlink() for n in range(len(parts)))


def is_within(root: Path, path: Path) -> bool:
    """Whether a path is that of a regular file to which no link leads from the folder."""
    return path.is_file() and not is_linked(root, path)


def regular_file(root: Path, path: Path) -> Path:
    """The path, seen to be that of a regular file in the folder itself.

    Raises:
        UserError: it is a link, or behind one, or no file at all.
    """
    if not is_within(root, path):
        raise UserError(f"{path} is a link, or behind one, or no file: put a copy in its place, or delete it")
    return path


def remove(root: Path, paths: Iterable[Path]) -> None:
    """Delete regular files of a folder, and then the folders below it that this leaves empty."""
    emptied = set()
    for path in paths:
        if is_within(root, path):
            path.unlink(missing_ok=True)
            emptied |= {folder for folder in path.parents if folder != root and folder.is_relative_to(root)}
    for folder in sorted(emptied, key=lambda one: len(one.parts), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def remove_torn(root: Path) -> None:
    """Delete what a process that was killed in the middle of a write left."""
    remove(root, [path for path in walk(root) if is_temporary(path.name)])


def sealed(path: Path) -> dict[str, Any] | None:
    """What a file says, if it is ours and whole; nothing is said of one that is not."""
    try:
        return read_sealed(path)
    except UserError:
        return None


class Ownership:
    """Which files of a folder a run wrote."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def files(self) -> list[Path]:
        """Those of the run; its manifest is the last."""
        ours = [path for path in walk(self.root) if not path.is_symlink() and self._is_ours(path)]
        return sorted(ours, key=lambda path: (path == self.root / "run.json", path))

    @cached_property
    def made_with(self) -> set[str]:
        """Hashes of the settings that the run's files were made with; none if there is no file of a run.

        They tell whose a folder is whose manifest is lost.
        """
        found = {str(self._manifest["config_hash"])} if self._manifest else set()
        for pattern in ("saes/*/sae_bench.json", "checkpoints/**/checkpoint.json", "records/*.json", "collections/*"):
            for content in filter(None, map(sealed, self.root.glob(pattern))):
                of = content.get("provenance") or content.get("settings") or content
                found |= {str(of["config_hash"])} if isinstance(of, Mapping) and "config_hash" in of else set()
        return found

    def check_deletable(self) -> None:
        """See that what stages read is the run's alone, so that nothing is left for the next run to take for its own.

        Raises:
            UserError: it is not.
        """
        ours = set(self.files)
        for path in walk(self.root):
            place = path.relative_to(self.root).parts
            if place[0] in STAGES and path.is_symlink():
                raise UserError(
                    f"{path} is a link: --overwrite deletes in --out {self.root} alone; delete the link, or choose "
                    "another --out"
                )
            if place[0] == "records" and path.suffix == ".json" and path not in ours and not is_temporary(path.name):
                raise UserError(f"{path} is no record of this run, but would be read as one: move it elsewhere")

    @cached_property
    def _manifest(self) -> dict[str, Any] | None:
        content = sealed(self.root / "run.json")
        return content if content and {"config", "config_hash"} <= content.keys() else None

    @cached_property
    def _names(self) -> set[str]:
        """Of the run's SAEs, the random ones beside them included."""
        names = set(map(str, (self._manifest or {}).get("saes", ())))
        described = {path.parent.name for path in self.root.glob("saes/*/sae_bench.json") if sealed(path)}
        collected = {path.stem for path in self.root.glob("collections/*.json") if sealed(path)}
        return names | described | collected

    @cached_property
    def _cells(self) -> Collection[str]:
        return set((sealed(self.root / "cells.json") or {}).get("cells", ()))

    @cached_property
    def _drawn(self) -> Mapping[str, str]:
        return read_drawn(self.root)

    def _is_ours(self, path: Path) -> bool:
        if is_temporary(path.name):
            return True
        match path.relative_to(self.root).parts:
            case ("run.json",):
                return bool(self.made_with)  # a damaged one, too, where the rest says whose it is
            case ("cells.json" | "drawn.json" | "submission.json",):
                return sealed(path) is not None
            case ("saes", sae, name):
                return self._is_of_sae(path, sae, name)
            case ("records", name) if name.endswith(".json"):
                return any(name.startswith(f"{sae}.") for sae in self._names) or sealed(path) is not None
            case ("collections", name):
                return Path(name).stem in self._names and name.endswith(".json")
            case ("latents", sae, name):
                return sae in self._names and re.fullmatch(r"\d+\.json", name) is not None
            case ("checkpoints", *_, step, name) if re.fullmatch(r"\d{8,}", step):
                return is_of_checkpoint(path.parent, name)
            case ("logs", name):
                return name == "driver.log" or name.removesuffix(".log") in self._cells
            case ("tensorboard", sae, name):
                return sae in self._names and name.startswith(EVENTS)
            case ("saebench", name):
                return name.removesuffix("_custom_sae_eval_results.json") in self._names
            case parts:
                digest = self._drawn.get("/".join(parts))
                return digest is not None and digest == sha256(path)

    def _is_of_sae(self, path: Path, sae: str, name: str) -> bool:
        if name == "sae_bench.json":
            return sae in self._names
        description = sealed(path.with_name("sae_bench.json"))
        if description is not None:
            return name in description["files"]
        return sae in self._names and name in ("sae_weights.safetensors", "cfg.json", "metrics.jsonl")


def is_of_checkpoint(folder: Path, name: str) -> bool:
    """Whether a file in the folder of a checkpoint is a part of it; of a torn one, whether it could be."""
    if name == "checkpoint.json" or is_temporary(name):
        return True
    manifest = sealed(folder / "checkpoint.json")
    stem, _, suffix = name.rpartition(".")
    return suffix == "safetensors" and (manifest is None or stem in manifest.get("sha256", {}))


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, be it whole or torn, and its folder unless something else is in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    parts = [path for path in folder.iterdir() if path.is_file() and is_of_checkpoint(folder, path.name)]
    remove(folder, sorted(parts, key=lambda path: path.name != "checkpoint.json"))
    if not any(folder.iterdir()):
        folder.rmdir()


def read_drawn(folder: Path) -> dict[str, str]:
    """The hashes of what was drawn in a folder, by name; none if nobody said."""
    path = folder / DRAWN
    if not path.is_file():
        return {}
    try:
        return {str(name): str(digest) for name, digest in read_sealed(path)["files"].items()}
    except (Damaged, KeyError, AttributeError):
        log.warning("%s is damaged: what was drawn is not known to be ours", path)
        return {}


OVERWRITE = "choose another --out, or --overwrite it"


def check_drawable(folder: Path, drawn: Mapping[str, bytes], elsewhere: str = OVERWRITE) -> None:
    """See that what is to be drawn replaces nothing but what was drawn before; `elsewhere`: what to do, if it does.

    Raises:
        UserError: it would replace a file of somebody else.
    """
    before = read_drawn(folder)
    if (folder / DRAWN).exists() and "files" not in (sealed(folder / DRAWN) or {}):
        raise UserError(f"{folder / DRAWN} does not say what was drawn here: move it elsewhere, or {elsewhere}")
    for name, content in drawn.items():
        path = folder / name
        if is_linked(folder, path) or (path.exists() and not path.is_file()):
            raise UserError(f"{path} is a link, behind one, or no file: move it elsewhere, or {elsewhere}")
        if not path.is_file() or path.read_bytes() == content or sha256(path) == before.get(name):
            continue
        if path.suffix != ".json" or sealed(path) is None:
            raise UserError(f"{path} was not drawn here, or was changed since: move it elsewhere, or {elsewhere}")


def write_drawn(folder: Path, drawn: Mapping[str, bytes], *, instead_of: str | None = None) -> None:
    """Write what was drawn, and say so in the folder; what began with `instead_of` and is drawn no more goes.

    Raises:
        UserError: it cannot be written.
    """
    before = read_drawn(folder)
    gone = {name for name in before.keys() - drawn.keys() if instead_of is not None and name.startswith(instead_of)}
    same = [folder / name for name in gone if is_within(folder, folder / name)]
    remove(folder, [path for path in same if sha256(path) == before[str(path.relative_to(folder))]])
    for name, content in drawn.items():
        write_bytes(folder / name, content)
    hashes = {name: sha256(folder / name) for name in drawn}
    write_sealed(folder / DRAWN, {"files": {name: of for name, of in before.items() if name not in gone} | hashes})
