"""`tune` from Python: the search, and what it found, as tables of pandas."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from sae_bench.api.run import settings_of, work
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.config import RunConfig
from sae_bench.runs.suite import configure
from sae_bench.tuning import tune as tuning
from sae_bench.tuning.outcomes import Outcome
from sae_bench.tuning.trials import TuneSettings
from sae_bench.tuning.worth import Worth


@dataclass(frozen=True)
class Tuned:
    """What a search found: `print` it, take its numbers, or train by its recipe, `sb.run(recipe=tuned.recipe, ...)`."""

    path: Path
    found: tuning.Found

    @property
    def recipe(self) -> Path:
        """The file that `recipe` and `added_recipe` take."""
        return self.path / tuning.RECIPE

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each architecture: what its recipe was worth on seeds and text that nothing was chosen by.

        `preset` and `tuned` are FVE at the wanted L0s; `worth`, their mean difference paired by seed, and the ends
        `low` and `high` of its 95% interval are missing where the preset's own settings stay. `settings` is a dict.
        """
        return pd.DataFrame([_row(worth) for worth in self.found.worths])

    @property
    def trials(self) -> pd.DataFrame:
        """One row for each trial of each rung and of the check, with a column for each knob.

        `score` is FVE at the wanted L0s, missing where it cannot be read off; `may_not_win` says why, or is empty.
        """
        return pd.DataFrame([_trial(rung, one) for rung, of in self.found.outcomes.items() for one in of])

    def __str__(self) -> str:
        return str(self.found)

    def __repr__(self) -> str:
        return f"Tuned({str(self.path)!r}): {len(self.found.worths)} architectures"


def tune(
    *,
    out: str | Path | None = None,
    trials: int = 9,
    rungs: int = 2,
    factor: int = 3,
    check_seeds: int = 3,
    config: str | None = None,
    on: str | None = None,
    overwrite: bool = False,
    quiet: bool = True,
    **settings: Any,
) -> Tuned:
    """Look for the best settings of every architecture in the same way, as the command `tune` does (docs/tuning.md).

    The same call again does only what is missing.

    Args:
        out: The tuning's folder; without it, in runs/, by a name made from the settings.
        trials: Settings tried for each architecture, the preset's own among them.
        rungs: Trainings of rising length; the last has `tokens`.
        factor: Of so many trials one goes on to the next rung, which is as many times longer.
        check_seeds: Seeds, other than `seed`, that the winner is held against the preset's settings with.
        config: A suite, by its name or TOML file; `settings` go over it, and its tasks are left out.
        on: Where the work is done, as `run`'s.
        overwrite: Delete the tuning that the folder holds.
        quiet: Without progress on the screen.
        settings: as `run`'s.

    Raises:
        UserError: as `run`, or what is asked for cannot be tuned. A trial that fails is no error: `trials` says why.
    """
    chosen = configure(config, settings_of(settings))
    amount = TuneSettings.build(trials=trials, rungs=rungs, factor=factor, check_seeds=check_seeds)
    folder = Path(out) if out is not None else Path("runs") / f"tuning.{chosen.name}"
    return search_in(folder, chosen, amount, Progress(quiet), on, overwrite=overwrite)


def search_in(
    folder: Path,
    config: RunConfig,
    amount: TuneSettings,
    progress: Progress,
    on: str | None = None,
    *,
    overwrite: bool = False,
) -> Tuned:
    """Do what is missing of a search, in its folder, which is locked meanwhile.

    Raises:
        UserError: as `tune`.
    """
    with RunFolder(folder).locked():
        if overwrite:
            tuning.clear(folder)
        return Tuned(folder, tuning.tune(config, amount, folder, progress, partial(work, progress=progress, on=on)))


def _row(worth: Worth) -> Mapping[str, Any]:
    low, high = worth.interval or (None, None)
    return {
        "architecture": worth.label,
        "preset": worth.default.score,
        "tuned": worth.chosen.score,
        "worth": worth.mean,
        "low": low,
        "high": high,
        "settings": worth.chosen.trial.settings,
        "note": worth.note,
    }


def _trial(rung: str, outcome: Outcome) -> Mapping[str, Any]:
    trial, reasons = outcome.trial, outcome.reasons
    about = {"rung": rung, "architecture": trial.arch.label, "trial": trial.number, "score": outcome.score}
    return {**about, "may_not_win": "; ".join(reasons), **trial.settings}
