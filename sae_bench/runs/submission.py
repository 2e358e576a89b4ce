"""What a reviewer looks at in a board that somebody submits, before anything of it is measured again.

Files: regular ones that a seal covers, and no other. Settings and fingerprints: one run's, made by a version whose
records are read here, with tasks as they are today. Completeness: every SAE that the settings ask for has a record of
every task; failures are records. Names: no character that hides or turns text. Nothing of the folder is run.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sae_bench.errors import UserError, one_line
from sae_bench.records.files import digest_of, read_sealed, sha256
from sae_bench.records.ownership import Ownership, read_drawn, sealed
from sae_bench.records.run_folder import SAE_DESCRIPTION
from sae_bench.records.schema import Record
from sae_bench.runs.begun import FORMAT
from sae_bench.runs.completeness import RERUN, asked_of, check_complete, tasks_asked
from sae_bench.runs.config import RunConfig
from sae_bench.runs.submitted_records import check_records, submitted_records

MOST_BYTES = 256 * 2**20
"""The largest file that is read as JSON: a record of an SAE with a million latents has a tenth of that."""


@dataclass(frozen=True)
class Submission:
    """A folder that was looked at and found in order."""

    folder: Path
    config: RunConfig
    config_hash: str
    records: Mapping[tuple[str, str], Record]
    """By SAE and task."""
    files: Mapping[str, str]
    """SHA-256 of what its numbers were read from, by name."""


def read_submission(folder: Path) -> Submission:
    """Look at everything that can be seen without measuring.

    Raises:
        UserError: something is not in order; one line that names the file and what to do.
    """
    _check_regular(folder)
    asked, tasks, manifest = _settings(folder / "run.json")
    if not any((folder / "records").glob("*.json")):  # tables alone, which no record stands behind
        raise UserError(f"{folder} holds no records, and tables say nothing without: give a finished run, or its board")
    _check_covered(folder)
    records = submitted_records(folder)
    check_records(folder / "run.json", records, manifest["config_hash"], asked[0])
    check_complete(folder, asked, tasks, manifest["saes"], records)
    names = ["run.json", *(f"records/{of}.{task}.json" for of, task in sorted(records))]
    files = {name: sha256(folder / name) for name in names}
    return Submission(folder, asked[0], manifest["config_hash"], records, files)


def _check_regular(folder: Path) -> None:
    """See that there is nothing but regular files, and none that is too large to be read."""
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder} is no folder, or a link to one: give the folder of a run or a board itself")
    for path in _everything(folder):
        if path.is_symlink() or not stat.S_ISREG(path.lstat().st_mode):
            raise UserError(f"{path} is a link, or no file: put a copy in its place, or delete it")
        if path.suffix == ".json" and path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, more than any record: delete it, and {RERUN}")


def _check_covered(folder: Path) -> None:
    """See that every file is the run's, and what a seal says."""
    try:
        ours, drawn = set(Ownership(folder).files), read_drawn(folder)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder} has a sealed file of another form ({one_line(str(error))}): {RERUN}") from None
    for path in _everything(folder):
        name = path.relative_to(folder)
        if name.name != ".lock" and (path not in ours or not _is_covered(folder, name, drawn)):
            raise UserError(f"{path} is covered by no seal, or not what was sealed: move it elsewhere, or {RERUN}")


def _everything(folder: Path) -> Iterator[Path]:
    """All that is below a folder and no folder itself, in the order of names; links are not followed."""
    for root, below, names in os.walk(folder):
        below.sort()
        for name in sorted([*names, *(one for one in below if (Path(root) / one).is_symlink())]):
            yield Path(root) / name


def _is_covered(folder: Path, name: Path, drawn: Mapping[str, str]) -> bool:
    """Whether a file of the run that a board may take is to the byte what a seal says; others are not taken."""
    path = folder / name
    match name.parts:
        case (
            ("run.json" | "submission.json",)
            | ("records" | "latents" | "collections", *_)
            | ("saes", _, "sae_bench.json")
        ):
            return sealed(path) is not None
        case ("saes", _, file):
            said = (sealed(path.with_name(SAE_DESCRIPTION)) or {}).get("files")
            of_sae = said.get(file) if isinstance(said, Mapping) else None
            return sha256(path) in (of_sae, drawn.get(str(name)))
    return True


def _settings(path: Path) -> tuple[list[RunConfig], list[str], dict[str, Any]]:
    """A run's settings, the first command's first; the tasks that they ask for; and its manifest."""
    manifest = read_sealed(path)
    shape = {"config": dict, "config_hash": str, "plugins": dict, "saes": list}
    for key, kind in shape.items():
        if not isinstance(manifest.get(key), kind):
            raise UserError(f"{path} has no {key}, or of another form: {RERUN}")
    if manifest["plugins"]:
        names = ", ".join(map(one_line, manifest["plugins"]))
        raise UserError(f"{path} names plugins, which are code and not run here: submit their source first ({names})")
    try:
        asked = asked_of(manifest)
        config, tasks = asked[0], tasks_asked(manifest, asked[0])
    except (ValidationError, TypeError) as error:
        raise UserError(f"{path}: its settings are not those of a run ({one_line(str(error)):.200}): {RERUN}") from None
    digest = config.evaluation_hash if manifest.get("format") == FORMAT else digest_of(manifest["config"])
    if digest != manifest["config_hash"]:
        raise UserError(f"{path}: its settings have another hash than it says: {RERUN}")
    if config.trust_remote_code:
        raise UserError(f"{path}: --trust-remote-code runs code of the model's author: run without it, and submit that")
    return asked, tasks, manifest
