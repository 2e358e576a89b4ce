"""What came of a trial: variance explained at the wanted L0s, and whether it may win.

A trial may win if every SAE of it, at every wanted L0 and every seed, was trained to the end and has, on held-out text,
an L0 within a tenth of the wanted one. Too high an L0 would be an advantage within that tenth, too. So variance
explained is read off at the very L0s that are wanted, on the straight line between neighbouring points of log FVU over
log L0, of the trial's own SAEs that differ in the wanted L0 alone.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from scipy.interpolate import make_interp_spline

from sae_bench.errors import one_line
from sae_bench.leaderboard.order import is_missed
from sae_bench.records.schema import Record
from sae_bench.tuning.trials import Trial

TOO_FAR = 0.5
"""Beyond so large a miss, as a share of the wanted L0, a straight line says nothing of what is there."""


@dataclass(frozen=True)
class Measured:
    """One SAE of a trial."""

    place: str
    """Site and width: SAEs of one place and seed are points of one curve."""
    seed: int
    wanted: float
    l0: float | None
    fve: float | None
    failure: str | None

    @property
    def reason(self) -> str | None:
        """Why its trial may not win."""
        where = f"at L0 {self.wanted:g}, seed {self.seed}"
        if self.failed or self.l0 is None:
            return f"{where}: {self.failure or 'its variance explained is undefined'}"
        return f"{where}: L0 {self.l0:.1f}" if is_missed(self.l0, self.wanted) else None

    @property
    def failed(self) -> bool:
        """Whether nothing was measured."""
        return self.failure is not None or self.l0 is None or self.fve is None

    @property
    def miss(self) -> float:
        """How far its L0 is from the wanted one, as a share of that."""
        return abs((self.l0 or 0.0) / self.wanted - 1)


_MEASURED = TypeAdapter(Measured)


@dataclass(frozen=True)
class Outcome:
    """A trial and its SAEs."""

    trial: Trial
    saes: tuple[Measured, ...]

    @cached_property
    def reasons(self) -> list[str]:
        """Why it may not win; none where it may."""
        return [reason for sae in self.saes if (reason := sae.reason)] or ([] if self.saes else ["it has no records"])

    @cached_property
    def by_seed(self) -> dict[int, float]:
        """Mean variance explained at the wanted L0s, for each seed; without what failed."""
        curves: dict[tuple[int, str], list[Measured]] = defaultdict(list)
        for sae in self.saes:
            curves[sae.seed, sae.place].append(sae)
        values: dict[int, list[float]] = defaultdict(list)
        for (seed, _), curve in curves.items():
            values[seed].append(_at_wanted(curve))
        return {seed: float(np.mean(of_seed)) for seed, of_seed in values.items() if not np.isnan(of_seed).any()}

    @property
    def score(self) -> float | None:
        """The mean over seeds; None where one of them has none."""
        n_seeds = len({sae.seed for sae in self.saes})
        return float(np.mean([*self.by_seed.values()])) if n_seeds and len(self.by_seed) == n_seeds else None

    @property
    def rank(self) -> tuple[bool, bool, float, int]:
        """Smaller is better: first those with a score, by it; then by how far they miss; then what failed."""
        worst = max((sae.miss for sae in self.saes), default=0.0)
        failed, score = not self.saes or any(sae.failed for sae in self.saes), self.score
        return failed, score is None, worst if score is None else -score, self.trial.number

    def as_json(self) -> dict[str, Any]:
        """What the file of a rung says of it."""
        about = {"arch": self.trial.arch.label, "trial": self.trial.number, "settings": self.trial.settings}
        saes = [asdict(sae) for sae in self.saes]
        return {**about, "score": self.score, "may_not_win": self.reasons, "saes": saes}


def _at_wanted(curve: Sequence[Measured]) -> float:
    """Mean FVE of the SAEs of one curve, at their wanted L0s; NaN where they are too far from these to tell."""
    if any(sae.failed or sae.miss > TOO_FAR for sae in curve):
        return float("nan")
    l0, fvu = (np.array([sae.l0 for sae in curve]), 1 - np.array([sae.fve for sae in curve]))
    order = np.argsort(l0)
    x, y = np.log(l0[order]), np.log(np.maximum(fvu[order], 1e-12))
    if (np.diff(x) <= 0).any():
        return float("nan")  # two wanted L0s, one L0: they were not reached
    line = make_interp_spline(x, y, k=1)  # and on beyond its ends
    return float(np.mean(1 - np.exp(line(np.log([sae.wanted for sae in curve])))))


def outcomes_of(trials: Iterable[Trial], records: Sequence[Record]) -> list[Outcome]:
    """The outcomes of some trials, from the records of the run that trained them."""
    own: dict[str, list[Measured]] = defaultdict(list)
    for record in records:
        if record.task == "reconstruction":
            own[record.sae.label].append(_measured(record))
    return [Outcome(trial, tuple(own[trial.spec.label])) for trial in trials]


def outcomes_from(trials: Iterable[Trial], said: Iterable[Mapping[str, Any]]) -> list[Outcome]:
    """The same from the file of a rung.

    Raises:
        LookupError, TypeError, ValueError: it says other things than ours do.
    """
    found = {(one["arch"], one["trial"]): tuple(map(_MEASURED.validate_python, one["saes"])) for one in said}
    return [Outcome(trial, found[trial.arch.label, trial.number]) for trial in trials]


def _measured(record: Record) -> Measured:
    sae, scores = record.sae, record.scores
    assert sae.target_l0 is not None, "tuning wants L0s"
    assert sae.seed is not None, "what a run trains has a seed"
    l0, fve = (scores[name].value if name in scores else None for name in ("l0", "fve"))
    failure = one_line(record.failure) if record.failure else None
    return Measured(f"{sae.site.name}, width {sae.d_sae}", sae.seed, sae.target_l0, l0, fve, failure)


def best(outcomes: Sequence[Outcome], n: int, *, winning: bool = False) -> list[Outcome]:
    """The n best of one architecture's; `winning`: those that may win come first.

    To go on a trial need not be within a tenth of its L0s: in a short training they are still on their way.
    """
    return sorted(outcomes, key=lambda outcome: (winning and bool(outcome.reasons), *outcome.rank))[:n]
