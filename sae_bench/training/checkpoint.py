"""Checkpoints of a training: everything that the next step depends on, so that a resumed run makes the same bits.

    checkpoints/00001234/<part>.safetensors      tensors of one SAE, or of the buffer
                         checkpoint.json         what is no tensor, and the checksum of every part; written last

A state is made of nested dictionaries whose leaves are tensors or what JSON can hold. The last two checkpoints are
kept; one that is torn or damaged is passed over, with a warning, for the one before.
"""

import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_bench.errors import UserError
from sae_bench.records.files import read_sealed, replacing, sha256, write_sealed
from sae_bench.records.ownership import remove_checkpoint
from sae_bench.signals import shielded

log = logging.getLogger(__name__)

State = Mapping[str, Any]
"""Nested: tensors, numbers, strings, lists of them."""

KEPT = 2
FORMAT = 2
"""Raised when a state has other parts than before: an older checkpoint is passed over."""
MANIFEST = "checkpoint.json"
_SEPARATOR = "|"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` steps: the state of every part, and facts about the run so far."""

    step: int
    config_hash: str
    parts: dict[str, dict[str, Any]]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training; those of another configuration than `config_hashes` are not looked at.

    They are written into `folder`. Where that has none, those in `elsewhere` are looked at, which may hold more parts
    than are asked for. `saved` is called after each that was written.
    """

    def __init__(
        self,
        folder: Path,
        config_hashes: Collection[str],
        elsewhere: Sequence[Path] = (),
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self._hashes, self._elsewhere, self._saved = folder, list(config_hashes), elsewhere, saved

    def save(self, step: int, parts: Mapping[str, State], facts: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove those that are too old and what was left unfinished.

        Raises:
            UserError: it cannot be written; earlier ones are as they were.
        """
        folder = self.folder / f"{step:08d}"
        with suppress(FileNotFoundError):
            (folder / MANIFEST).unlink()
        sums, plain = {}, {}
        try:
            for name, state in parts.items():
                tensors, plain[name] = flatten(state)
                with replacing(folder / f"{name}.safetensors") as file:
                    save_file(tensors, file)
                    sums[name] = sha256(file)
            content = {"format": FORMAT, "step": step, "config_hash": self._hashes[0], "sha256": sums, "state": plain}
            write_sealed(folder / MANIFEST, content | {"facts": dict(facts)})
        except BaseException:
            remove_checkpoint(folder)
            raise
        # Those of a later step are damaged, or of other settings: otherwise this step would not have been made.
        whole = [path for path in _folders(self.folder) if int(path.name) <= step and (path / MANIFEST).exists()]
        for path in _folders(self.folder):
            if path not in whole[:KEPT]:
                remove_checkpoint(path)
        self._saved()

    def load(self, names: Iterable[str]) -> Checkpoint | None:
        """The newest whole checkpoint that has these parts; None if there is none."""
        names = list(names)
        for folder in [folder for of in (self.folder, *self._elsewhere) for folder in _folders(of)]:
            try:
                return self._read(folder, names)
            except (UserError, OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
                log.warning("checkpoint %s cannot be used (%s): going back to the one before", folder.name, error)
        return None

    def _read(self, folder: Path, names: Iterable[str]) -> Checkpoint:
        manifest = read_sealed(folder / MANIFEST)
        if manifest["config_hash"] not in self._hashes:
            raise UserError("it was made with other settings")
        if manifest.get("format") != FORMAT:
            raise UserError("it was made by another version of this program")
        parts = {}
        for name in names:
            file = folder / f"{name}.safetensors"
            if sha256(file) != manifest["sha256"][name]:
                raise UserError(f"{file.name} is damaged")
            parts[name] = unflatten(load_file(file), manifest["state"][name])
        return Checkpoint(manifest["step"], manifest["config_hash"], parts, manifest["facts"])


def checkpointed(folder: Path) -> set[str]:
    """The parts of the whole checkpoints in a folder."""
    found: set[str] = set()
    for path in _folders(folder):
        try:
            found |= read_sealed(path / MANIFEST)["sha256"].keys()
        except (UserError, LookupError, TypeError, AttributeError):
            log.warning("checkpoint %s cannot be read", path.name)
    return found


def _folders(of: Path) -> list[Path]:
    """From the newest to the oldest."""
    found = of.iterdir() if of.is_dir() else ()
    return sorted((path for path in found if re.fullmatch(r"\d{8,}", path.name)), reverse=True)


class CheckpointSaver:
    """Decides when a checkpoint is due, and takes it. `every` is in seconds, or in steps."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        take: Callable[[int], tuple[Mapping[str, State], Mapping[str, Any]]],
        *,
        seconds: float | None = None,
        steps: int | None = None,
    ) -> None:
        self._checkpoints, self._take = checkpoints, take
        self._seconds, self._steps = seconds, steps
        self._last, self._saved = time.monotonic(), -1

    def after_step(self, n_done: int) -> None:
        """Take a checkpoint if one is due after `n_done` steps."""
        by_time = self._seconds is not None and time.monotonic() - self._last >= self._seconds
        if by_time or (self._steps is not None and n_done % self._steps == 0):
            self.save(n_done)

    def save(self, n_done: int) -> None:
        """Take a checkpoint, if there is none of this step."""
        if n_done == self._saved:
            return
        with shielded():
            self._checkpoints.save(n_done, *self._take(n_done))
            self._last, self._saved = time.monotonic(), n_done


def flatten(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate the tensors, named by their path, from the rest."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for key, value in state.items():
        assert _SEPARATOR not in key, f'"{key}" would be taken for a path'
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            shared = any(plain.data_ptr() == other.data_ptr() for other in tensors.values())
            tensors[key] = plain.clone() if shared else plain  # a plugin may tie parameters; the format may not
        elif isinstance(value, Mapping):
            below, rest[key] = flatten(value)
            tensors |= {f"{key}{_SEPARATOR}{name}": tensor for name, tensor in below.items()}
        else:
            rest[key] = value
    return tensors, rest


def unflatten(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """What `flatten` took apart."""
    state: dict[str, Any] = {
        key: unflatten({}, value) if isinstance(value, Mapping) else value for key, value in rest.items()
    }
    for name, tensor in tensors.items():
        *path, last = name.split(_SEPARATOR)
        place = state
        for key in path:
            place = place[key]
        place[last] = tensor
    return state
