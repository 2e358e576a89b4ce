"""`tune`: the same search for every architecture, rung by rung, and the recipe that it finds.

OUT/tuning.json         what is tuned, and how
    rung_1/ ...         each rung's run, and the check's: a run's folder, which goes on where it was stopped
    rung_1.json ...     every trial of the rung with its settings, SAEs and score, or why it may not win
    recipe.toml         what a run names with --recipe
    worth.md            what tuning was worth to each architecture
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sae_bench.errors import UserError
from sae_bench.lm.fingerprint import differences
from sae_bench.progress import Progress
from sae_bench.records.files import (
    Damaged,
    as_sealed,
    digest_of,
    of_our_form,
    read_sealed,
    write_sealed,
    write_text,
)
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Record
from sae_bench.registry import ARCHITECTURES
from sae_bench.runs.config import RunConfig
from sae_bench.runs.home import hashes_of_plugin
from sae_bench.runs.plan import settle
from sae_bench.runs.sources import digests_of
from sae_bench.runs.tuned import CHECK, PART, SEARCHED, TunedArch, as_toml, rung_name, runs_of
from sae_bench.saes.knobs import LR
from sae_bench.tuning.outcomes import Outcome, best, outcomes_from, outcomes_of
from sae_bench.tuning.stages import check_config, check_tunable, rung_config
from sae_bench.tuning.trials import Trial, TuneSettings, trials_of, tuned_archs
from sae_bench.tuning.worth import Worth, terminal_table, written

MANIFEST, RECIPE, WORTH = "tuning.json", "recipe.toml", "worth.md"

T = TypeVar("T")

Work = Callable[[RunConfig, RunFolder], Sequence[Record]]
"""Does what is missing of a run in its folder, here or on a cluster."""


@dataclass(frozen=True)
class Found:
    """What came of a tuning."""

    worths: Sequence[Worth]
    """By architecture."""
    outcomes: Mapping[str, Sequence[Outcome]]
    """Of all trials, by the name of the run that trained them: the rungs, and the check."""
    about: Mapping[str, Any]
    """Where the recipe comes from, as its file says it."""

    def __str__(self) -> str:
        return terminal_table(self.worths, self.about)


def tune(config: RunConfig, settings: TuneSettings, out: Path, progress: Progress, work: Work) -> Found:
    """Find a recipe, and write it with what it is worth; the same again does only what is missing.

    Raises:
        UserError: something asked for cannot be done; finished rungs stay, and what a rung under way had checkpointed.
    """
    check_tunable(config, settings)
    archs, left_out = tuned_archs(config.archs)
    trials = {arch.label: trials_of(arch, config.preset, settings.trials) for arch in archs}
    for line in left_out:
        progress.say(line)
    _begin(config, settings, out)
    alive, last = trials, dict[str, list[Outcome]]()
    outcomes: dict[str, list[Outcome]] = {}
    for rung in range(settings.rungs):
        stage = _Stage(out, rung_name(rung), rung_config(config, settings, rung, _all(alive)))
        progress.say(
            f"rung {rung + 1} of {settings.rungs}: {settings.n_kept(rung)} trials of each of {len(archs)} "
            f"architectures, {stage.config.tokens:,} activations"
        )
        n_kept = settings.n_kept(rung + 1) if rung + 1 < settings.rungs else 0
        last = stage.outcomes(alive, n_kept, work)
        outcomes[rung_name(rung)] = _all(last)
        alive = {label: [outcome.trial for outcome in best(of, n_kept)] for label, of in last.items()}
    chosen = {label: best(of, 1, winning=True)[0] for label, of in last.items()}
    finalists = {
        label: [trials[label][0], *([of.trial] if of.trial.number and not of.reasons else [])]
        for label, of in chosen.items()
    }
    stage = _Stage(out, CHECK, check_config(config, settings, _all(finalists)))
    progress.say(f"check: what was found, and the preset's own settings, with {settings.check_seeds} other seeds")
    checked = stage.outcomes(finalists, 0, work)
    outcomes[CHECK] = _all(checked)
    worths = [Worth.of(label, checked[label], chosen[label]) for label in trials]
    _check_one_model(settings, out)
    about = _provenance(config, settings, stage.said(), out)
    write_text(out / RECIPE, as_toml(about, {w.label: _tuned(w) for w in worths}, "Written by `python bench.py tune`."))
    write_text(out / WORTH, written(worths, about))
    return Found(worths, outcomes, about)


class _Stage:
    """A rung, or the check: a run, and the file that says what came of its trials."""

    def __init__(self, out: Path, name: str, config: RunConfig) -> None:
        self.file, self.folder, self.config = out / f"{name}.json", RunFolder(out / name), config

    def outcomes(self, trials: Mapping[str, Sequence[Trial]], n_kept: int, work: Work) -> dict[str, list[Outcome]]:
        """By architecture; read where they are there, and measured otherwise."""
        said = self._said()
        if said is not None:
            with of_our_form(self.file):
                found = outcomes_from(_all(trials), said["trials"])
        else:
            with self.folder.locked():  # workers of a cluster look for the lock of the run that they work for
                records = work(self.config, self.folder)
            found = outcomes_of(_all(trials), records)
            self._write(_grouped(found), n_kept, records)
        return _grouped(found)

    def said(self) -> dict[str, Any]:
        """What the file says; it is there."""
        return read_sealed(self.file)

    def _said(self) -> dict[str, Any] | None:
        """What the file says, if it is there, whole, and of these settings."""
        try:
            said = read_sealed(self.file) if self.file.exists() else None
        except Damaged:
            return None  # its run's records are still there
        return said if said is not None and said["config_hash"] == self.config.hash else None

    def _write(self, found: Mapping[str, Sequence[Outcome]], n_kept: int, records: Sequence[Record]) -> None:
        kept = {(label, one.trial.number) for label, of in found.items() for one in best(of, n_kept)}
        rows = [
            {**one.as_json(), "goes_on": (label, one.trial.number) in kept} for label, of in found.items() for one in of
        ]
        made = records[0].provenance
        measured = {
            "model": made.model,
            "dataset": made.dataset,
            "versions": made.versions,
            "model_sha256": made.model_sha256,
            "eval_fingerprint": made.eval_fingerprint,
            "eval_documents": made.eval_documents,
        }
        identity = self.config.identity
        content = {"config": identity, "config_hash": self.config.hash, **measured, "trials": rows}
        write_sealed(self.file, content)


def clear(out: Path) -> None:
    """Delete a tuning's files and runs, and nothing else that may be there.

    Raises:
        UserError: a folder that has the name of a rung holds something else.
    """
    with of_our_form(out / MANIFEST):
        said = read_sealed(out / MANIFEST)["settings"] if (out / MANIFEST).exists() else None
        names = runs_of(0 if said is None else said["rungs"])
    for name in names:
        RunFolder(out / name).clear()
        (out / f"{name}.json").unlink(missing_ok=True)
    for name in (MANIFEST, RECIPE, WORTH):
        (out / name).unlink(missing_ok=True)


def _begin(config: RunConfig, settings: TuneSettings, out: Path) -> None:
    """Say what is tuned in the folder, and see that it is nothing else.

    Raises:
        UserError: the folder holds another tuning, or one of what is something else now.
    """
    path = out / MANIFEST
    with of_our_form(path):
        manifest = read_sealed(path) if path.exists() else {}
        before = dict(manifest.get("settings", {}))
        read = dict(before.get("plugins", {}))
        names = {Path(plugin).name: plugin for plugin in config.plugins}
        plugins = {name: hashes_of_plugin(plugin, read.get(name, ())) for name, plugin in names.items()}
    archs, files = as_sealed(_tried(config)), digests_of(config)
    with of_our_form(path):
        began_with = manifest.get("began_with", {"archs": archs, "files": files})
        known = {name: of for name, of in began_with["files"].items() if of is not None}
        changed_archs = differences(began_with["archs"], archs)
    there = {name: of for name, of in files.items() if of is not None}
    other = [name for name in known if known[name] != there.get(name, known[name])]
    now = {**settings.model_dump(), **config.by_content, "plugins": plugins}
    before = before or now
    if not other and (changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]):
        difference = "; ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed)
        raise UserError(
            f"--out {out} holds a tuning with other settings ({difference}): choose another --out, or --overwrite it"
        )
    if changed := changed_archs + other:
        raise UserError(
            f"--out {out} holds a tuning that was begun with something else ({'; '.join(changed)}): bring it back, "
            "choose another --out, or --overwrite it"
        )
    write_sealed(path, {"settings": now, "began_with": {"archs": archs, "files": files | known}})


def _tried(config: RunConfig) -> dict[str, Any]:
    """What is tried of every architecture besides a tuning's settings, flat, so that what changed can be named.

    Its version, the ranges of its knobs, and all that the preset trains it by: no knob turns most of that, and every
    trial has it.
    """
    found: dict[str, Any] = {}
    for arch in config.archs:
        cls, (options, recipe) = ARCHITECTURES[arch.name], settle(arch, config.preset)
        knobs = {"lr": LR, **cls.knobs}
        ranges = {f"{name} {end}": getattr(knob, end) for name, knob in knobs.items() for end in ("low", "high")}
        about = {"version": cls.version, **ranges, **recipe.model_dump(mode="json"), **options}
        found |= {f"{arch.label}: {name}": value for name, value in about.items()}
    return found


def _check_one_model(settings: TuneSettings, out: Path) -> None:
    """See that all rungs and the check had one language model and one text: files of a cluster may change, too.

    Raises:
        UserError: they had not.
    """
    said = {name: read_sealed(out / f"{name}.json") for name in runs_of(settings.rungs)}
    first = said[rung_name(0)]
    for name, of in said.items():
        if changed := [what for what in ("model", "model_sha256", "dataset") if of[what] != first[what]]:
            raise UserError(
                f"{out / name}.json has another {changed[0]} than {rung_name(0)}: what the tuning reads has changed "
                "meanwhile; choose another --out, or --overwrite it"
            )


def _all(by_arch: Mapping[str, Iterable[T]]) -> list[T]:
    return [one for of_arch in by_arch.values() for one in of_arch]


def _grouped(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.trial.arch.label, []).append(outcome)
    return found


def _tuned(worth: Worth) -> TunedArch:
    trial = worth.chosen.trial
    return TunedArch(version=ARCHITECTURES[trial.arch.name].version, settings=trial.settings)


def _provenance(config: RunConfig, settings: TuneSettings, checked: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Where a recipe comes from, as its file says it: no time and no path, so that the same search writes the same."""
    said = config.identity
    return {
        "model": checked["model"],
        "dataset": checked["dataset"],
        **{name: said[name] for name in SEARCHED if name in said},
        "part": PART,
        **settings.model_dump(),
        "versions": checked["versions"],
        "model_sha256": checked["model_sha256"],
        "trials_sha256": digest_of([read_sealed(out / f"{name}.json")["trials"] for name in runs_of(settings.rungs)]),
    }
