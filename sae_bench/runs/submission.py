"""What a reviewer looks at in a board that somebody submits, before anything of it is measured again.

Files: regular ones that a seal covers, and no other. Settings and fingerprints: one run's, made by a version whose
records are read here, with tasks as they are today. Completeness: every SAE that the settings ask for has a record of
every task; failures are records. Names: no character that hides or turns text. Nothing of the folder is run.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sae_bench._version import __version__
from sae_bench.errors import UserError, one_line
from sae_bench.evaluation.task import latent_tasks
from sae_bench.leaderboard.load import check_comparable
from sae_bench.lm.sites import KINDS
from sae_bench.records.files import digest_of, read_sealed, sha256
from sae_bench.records.names import file_name
from sae_bench.records.ownership import Ownership, read_drawn, sealed
from sae_bench.records.run_folder import SAE_DESCRIPTION
from sae_bench.records.schema import BY_RATERS, Record, SiteDescription, record_from
from sae_bench.registry import TASKS
from sae_bench.runs.begun import FORMAT
from sae_bench.runs.config import RunConfig
from sae_bench.runs.deciding import ASKED
from sae_bench.runs.verify import score_problem

MOST_BYTES = 256 * 2**20
"""The largest file that is read as JSON: a record of an SAE with a million latents has a tenth of that."""

RERUN = "run the same command again, and submit what it leaves"
WHICH = [name for name in ASKED if name not in ("saes", "tasks", "plugins")]
"""The settings that say which SAEs a run trains."""
ALIKE = ("model", "model_sha256", "tokenizer_sha256", "eval_fingerprint", "dataset", "config_hash")
"""What records of one run share."""


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
    config, asked, manifest = _settings(folder / "run.json")
    _check_covered(folder)
    records: dict[tuple[str, str], Record] = {}
    for path in sorted((folder / "records").glob("*.json")):
        record = _record(path)
        if path.name != f"{record.sae.id}.{record.task}.json":
            raise UserError(f"{path} is a record of {one_line(record.sae.id)}.{one_line(record.task)}: rename it so")
        records[record.sae.id, record.task] = record
    if not records:
        raise UserError(f"{folder / 'records'} holds no records: give the folder of a finished run, or its board")
    _check_alike(folder, records, manifest["config_hash"], config)
    _check_complete(folder, asked, manifest["saes"], records)
    names = ["run.json", *(f"records/{of}.{task}.json" for of, task in sorted(records))]
    return Submission(folder, config, manifest["config_hash"], records, {name: sha256(folder / name) for name in names})


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


def _settings(path: Path) -> tuple[RunConfig, list[RunConfig], dict[str, Any]]:
    """A run's settings, those of every command that it was asked by, and its manifest."""
    manifest = read_sealed(path)
    shape = {"config": dict, "config_hash": str, "plugins": dict, "saes": list}
    for key, kind in shape.items():
        if not isinstance(manifest.get(key), kind):
            raise UserError(f"{path} has no {key}, or of another form: {RERUN}")
    if manifest["plugins"]:
        names = ", ".join(map(one_line, manifest["plugins"]))
        raise UserError(f"{path} names plugins, which are code and not run here: submit their source first ({names})")
    try:
        config = RunConfig(**manifest["config"])
        parts = [{name: part[name] for name in WHICH if name in part} for part in manifest.get("asked", [{}])]
        asked = [RunConfig(**{**manifest["config"], **part}) for part in parts]
    except (ValidationError, TypeError) as error:
        raise UserError(f"{path}: its settings are not those of a run ({one_line(str(error)):.200}): {RERUN}") from None
    digest = config.evaluation_hash if manifest.get("format") == FORMAT else digest_of(manifest["config"])
    if digest != manifest["config_hash"]:
        raise UserError(f"{path}: its settings have another hash than it says: {RERUN}")
    if config.trust_remote_code:
        raise UserError(f"{path}: --trust-remote-code runs code of the model's author: run without it, and submit that")
    return config, asked, manifest


def _record(path: Path) -> Record:
    content = read_sealed(path)
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        raise UserError(f"{path} holds a number that is not finite: {RERUN}") from None
    record = record_from(content, path)
    about = record.sae
    texts = [about.id, about.arch, about.label, about.site.name, record.task, *record.metrics, *record.scores]
    for text in [*texts, record.provenance.model, record.provenance.dataset]:
        if one_line(text) != text:
            raise UserError(f"{path} has a name with characters that hide or turn text, {one_line(text)!r}: rename it")
    for name in (about.id, record.task):
        if name != file_name(name):
            raise UserError(f"{path}: {one_line(name)!r} is no name of an SAE or a task: {RERUN}")
    try:
        problem = score_problem(record)
    except (KeyError, ValueError, ZeroDivisionError) as error:  # not of this program
        problem = f"a score is of sums that it does not have ({one_line(str(error))})"
    if problem is not None:
        raise UserError(f"{path}: {problem}: {RERUN}")
    return record


def _check_alike(folder: Path, records: Mapping[tuple[str, str], Record], config_hash: str, config: RunConfig) -> None:
    """See that all records are of one run, of a version that is read here and of tasks as they are today."""
    first = next(iter(records.values())).provenance
    for (sae, task), record in records.items():
        path = folder / "records" / f"{sae}.{task}.json"
        for what in ALIKE:
            if (was := getattr(record.provenance, what)) != (wanted := getattr(first, what)):
                raise UserError(
                    f"{path}: its {what} is {one_line(str(was))}, others' is {one_line(str(wanted))}: {RERUN}"
                )
        _check_version(path, record.provenance.versions.get("sae-arch-bench", ""))
        if record.measured_on == BY_RATERS:
            continue
        if record.task not in TASKS:
            raise UserError(f"{path} is of the task {record.task}, which is not built in: submit its source first")
        if (version := str(TASKS[record.task].version)) != record.task_version:
            raise UserError(
                f"{path} was measured by {record.task} {one_line(record.task_version)}, this version has {version}: "
                "run the same command with this version, and submit that"
            )
    if first.config_hash != config_hash:
        raise UserError(f"{folder / 'run.json'} is not of the run that the records are of: {RERUN}")
    if first.model != config.model and not config.random_lm and config.world is None:
        raise UserError(f"{folder / 'run.json'} names {config.model}, the records {first.model}: {RERUN}")
    check_comparable(list(records.values()))


def _check_version(path: Path, version: str) -> None:
    """See that a record is of a version up to this one, in whose terms records are read."""
    if not (found := re.match(r"(\d+)\.(\d+)\.(\d+)", version)):
        raise UserError(f"{path} does not say the version of sae-arch-bench that made it: {RERUN}")
    this = re.match(r"(\d+)\.(\d+)\.(\d+)", __version__)
    if this and tuple(map(int, found.groups())) > tuple(map(int, this.groups())):
        raise UserError(f"{path} was made by sae-arch-bench {one_line(version)}, this is {__version__}: update it")


def _check_complete(
    folder: Path, asked: Sequence[RunConfig], saes: Sequence[str], records: Mapping[tuple[str, str], Record]
) -> None:
    """See that nothing was left out: SAEs that the settings ask for, and their records, are all there."""
    # A study of raters may be of some SAEs alone.
    tasks = {task for (_, task), record in records.items() if record.measured_on != BY_RATERS}
    of_latents, wanted = set(latent_tasks(tasks)), set(map(str, saes))
    for sae, task in product(sorted(wanted), sorted(tasks)):
        if (sae, task) not in records:
            raise UserError(
                f"{folder}/records/{one_line(sae)}.{task}.json is missing, and a failure is a record: {RERUN}"
            )
    for (sae, task), record in records.items():
        about_latents = task in of_latents or record.measured_on == BY_RATERS  # also of random SAEs
        if sae not in wanted and not about_latents:
            raise UserError(f"{folder}/records/{sae}.{task}.json is of an SAE that run.json does not name: {RERUN}")
    own = [record.sae for record in records.values() if record.sae.id in wanted and not record.sae.origin]
    have = {(one.label, one.site.name, one.d_sae, one.target, one.seed) for one in own}
    sites = {one.site.name: one.site for one in own}
    trained = chain.from_iterable(
        product(
            [arch.label for arch in of.archs],
            [name for name, site in sites.items() if _is_at(of, site)],
            of.widths, [*of.l0s, *of.sparsity], of.seeds,
        )
        for of in asked
    )  # fmt: skip
    for label, site, width, target, seed in trained:
        if (label, site, width, target, seed) not in have:
            lacks = f"{one_line(label)} at {site}, width {width}, target {target:g}, seed {seed}"
            raise UserError(f"{folder / 'run.json'} asks for {lacks}, of which there is no record: {RERUN}")


def _is_at(of: RunConfig, site: SiteDescription) -> bool:
    """Whether a command asked for SAEs at a site; one that has no short name, it asked for by its path."""
    return site.kind not in KINDS or (site.kind in of.sites and site.layer in of.layers)
