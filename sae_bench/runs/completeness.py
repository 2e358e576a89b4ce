"""Whether a submitted board hides nothing: what each command asked its run for, and of what there are records.

What was asked for is no part of the settings' hash, for a run may grow: a stranger can shorten it as easily as drop a
record. So it is held against the records from both sides. Whatever was asked for has records, at every layer that was
named; whatever has records was asked for. Not seen is who writes down one command for each SAE that he likes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError, one_line
from sae_bench.evaluation.task import default_tasks, latent_tasks
from sae_bench.lm.sites import KINDS
from sae_bench.records.schema import BY_RATERS, Record, SAEDescription
from sae_bench.runs.begun import FORMAT
from sae_bench.runs.config import RunConfig
from sae_bench.runs.deciding import ASKED

RERUN = "run the same command again, and submit what it leaves"
WHICH = [name for name in ASKED if name not in ("tasks", "plugins")]
"""The settings that say which SAEs a run has."""

Wanted = tuple[str, str, int | None, int, float | None, int | None]
"""What tells an SAE of a run: label, kind of site, layer (None: whichever), width, target, seed."""


def asked_of(manifest: Mapping[str, Any]) -> list[RunConfig]:
    """The settings of the command that began a run, and of every one that asked the same folder for SAEs since.

    Raises:
        TypeError: it does not say so in its form.
        ValidationError: these are no settings.
    """
    config = manifest["config"]
    parts = manifest.get("asked", [] if manifest.get("format") == FORMAT else [{}])
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise TypeError("what its commands asked for is of another form")
    if strange := {key for part in parts for key in part} - {*ASKED}:
        raise TypeError(f"a command asked for {one_line(str(min(strange)))}, which says nothing of SAEs")
    # A site that a later command did not name is the usual one, not that of the first.
    known = {name: value for name, value in config.items() if name not in ASKED}
    later = [{name: part[name] for name in WHICH if name in part} for part in parts if part]
    return [RunConfig.of_run(manifest), *(RunConfig(**known, **part) for part in later)]


def tasks_asked(manifest: Mapping[str, Any], config: RunConfig) -> list[str]:
    """The tasks that the commands named, or took for granted; none of a run from before it was written down.

    Raises:
        TypeError: it does not say so in its form.
    """
    usual = default_tasks(features_known=config.world is not None)
    said = [part["tasks"] for part in manifest.get("asked", ()) if part.get("tasks") is not None]
    if not all(isinstance(of, list) and all(isinstance(name, str) for name in of) for of in said):
        raise TypeError("the tasks that its commands asked for are of another form")
    return list(dict.fromkeys(name for of in said for name in of or usual))


def check_complete(
    folder: Path,
    asked: Sequence[RunConfig],
    tasks_wanted: Iterable[str],
    saes: Sequence[str],
    records: Mapping[tuple[str, str], Record],
) -> None:
    """See that nothing was left out: SAEs and tasks that the commands asked for, and their records, are all there.

    Raises:
        UserError: something is not, or there is an SAE that nothing asks for.
    """
    # A study of raters may be of some SAEs alone.
    tasks = {task for (_, task), record in records.items() if record.measured_on != BY_RATERS}
    if missing := [task for task in tasks_wanted if task not in tasks]:
        raise UserError(
            f"{folder / 'run.json'} asks for the task {one_line(missing[0])}, of which there is no record: {RERUN}"
        )
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
    own = {record.sae.id: record.sae for record in records.values() if record.sae.id in wanted}
    _check_asked(folder / "run.json", asked, list(own.values()))


def _check_asked(path: Path, asked: Sequence[RunConfig], saes: Sequence[SAEDescription]) -> None:
    """See that the SAEs of a run are those that its commands asked for."""
    trained, others = ([sae for sae in saes if bool(sae.origin) == is_other] for is_other in (False, True))
    imported = {sae.sha256: sae.source for of in asked for sae in of.saes}
    if lost := [source for digest, source in imported.items() if digest not in map(_source_hash, others)]:
        raise UserError(f"{path} asks for --sae {one_line(lost[0])}, of which there is no record: {RERUN}")
    named = {sae.id for sae in others if _source_hash(sae) in imported}
    here: dict[Wanted, set[str]] = {}
    for sae in trained:
        for layer in (sae.site.layer, None):
            of = sae.label, sae.site.kind, layer, sae.d_sae, sae.target, sae.seed
            here.setdefault(of, set()).add(sae.id)
    for one in chain.from_iterable(map(_trained, asked)):
        if one not in here:
            label, kind, layer, width, target, seed = one
            site = kind if layer is None else f"layer_{layer}.{kind}"
            lacks = f"{one_line(label)} at {one_line(site)}, width {width}, target {target:g}, seed {seed}"
            raise UserError(f"{path} asks for {lacks}, of which there is no record: {RERUN}")
        named |= here[one]
    if nobodys := sorted({sae.id for sae in saes} - named):
        raise UserError(f"{path} has {nobodys[0]}, which no command asked for: {RERUN}")


def _trained(of: RunConfig) -> Iterator[Wanted]:
    """The SAEs that a command asked for; no more than there are where each is looked for as it comes."""
    axes: tuple[Iterable[Any], ...] = (
        (arch.label for arch in of.archs), _sites(of), of.widths, (*of.l0s, *of.sparsity), of.seeds,
    )  # fmt: skip
    for label, (kind, layer), width, target, seed in product(*map(dict.fromkeys, axes)):
        yield label, kind, layer, width, target, seed


def _sites(of: RunConfig) -> Iterator[tuple[str, int | None]]:
    """Kind and layer of each; without a layer where none was named, which is the model's middle one, or it has none."""
    for kind in of.sites:
        numbered = kind in KINDS or "{layer}" in kind
        yield from product([kind], of.layers if numbered and of.layers else [None])


def _source_hash(sae: SAEDescription) -> Any:
    """Of the files that an SAE from elsewhere was read from."""
    return (sae.origin.model_extra or {}).get("sha256") if sae.origin else None
