"""What tuning was worth to each architecture: its recipe against the preset's own settings, on seeds and text that
nothing was chosen by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from tabulate import tabulate

from sae_bench.tuning.outcomes import Outcome

HEAD = ["architecture", "preset", "tuned", "worth", "95% interval", "settings", ""]


@dataclass(frozen=True)
class Worth:
    """An architecture's recipe, and what it was held against."""

    label: str
    default: Outcome
    chosen: Outcome
    """The winner, or the preset's settings where there is none."""
    note: str

    @classmethod
    def of(cls, label: str, checked: Sequence[Outcome], winner: Outcome) -> "Worth":
        """From the check's outcomes, the preset's first, and the winner of the last rung."""
        default, found = checked[0], checked[-1]
        between = cls(label, default, found, "").interval
        # Though the preset may miss an L0: both are read off at the wanted ones, and boards compare at matched ones.
        is_worse = between is not None and between[1] < 0
        notes = []
        if winner.reasons:
            notes.append(f"no trial may win, the best not {_first(winner.reasons)}")
        elif winner.trial.number == 0:
            notes.append("the preset's own settings won")
        elif found.reasons:
            notes.append(f"the winner, {_settings(found)}, is not taken: {_first(found.reasons)}")
        elif is_worse and between is not None:
            behind = f"{between[0]:+.4f} to {between[1]:+.4f} against the preset"
            notes.append(f"the winner, {_settings(found)}, is not taken: {behind}")
        if default.reasons:
            notes.append(f"preset: {_first(default.reasons)}")
        chosen = default if found.reasons or is_worse else found
        return cls(label, default, chosen, "; ".join(notes))

    @property
    def differences(self) -> list[float]:
        """Tuned less preset, for each seed that both have."""
        tuned, preset = self.chosen.by_seed, self.default.by_seed
        return [tuned[seed] - preset[seed] for seed in tuned if seed in preset]

    @property
    def mean(self) -> float | None:
        """The mean difference over seeds; none where nothing was changed."""
        found = self.differences
        return None if self.chosen is self.default or not found else float(np.mean(found))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's interval of the mean difference over seeds; none where nothing was changed, or of one seed."""
        found = self.differences
        if self.chosen is self.default or len(found) < 2:
            return None
        mean, error = float(np.mean(found)), float(np.std(found, ddof=1)) / len(found) ** 0.5
        half = float(stats.t.ppf(0.975, len(found) - 1)) * error
        return mean - half, mean + half

    @property
    def row(self) -> list[str]:
        between = self.interval
        changed = self.chosen is not self.default
        return [
            self.label,
            _number(self.default.score),
            _number(self.chosen.score) if changed else "-",
            "-" if self.mean is None else f"{self.mean:+.4f}",
            "-" if between is None else f"{between[0]:+.4f} to {between[1]:+.4f}",
            _settings(self.chosen),
            self.note,
        ]


def terminal_table(worths: Sequence[Worth], about: Mapping[str, Any]) -> str:
    """As text; the best first."""
    return f"{tabulate(_rows(worths), HEAD, tablefmt='simple', disable_numparse=True)}\n\n{caption(about)}\n"


def written(worths: Sequence[Worth], about: Mapping[str, Any]) -> str:
    """As Markdown."""
    return f"{tabulate(_rows(worths), HEAD, tablefmt='pipe', disable_numparse=True)}\n\n{caption(about)}\n"


def caption(about: Mapping[str, Any]) -> str:
    """What the numbers are."""
    l0s = ", ".join(f"{l0:g}" for l0 in about["l0s"])
    steps = about["tokens"] * about["reuse"] // about["batch_size"]
    rungs = f" in {about['rungs']} rungs, the last" if about["rungs"] > 1 else ""
    return (
        f"FVE at L0 {l0s} (mean), on held-out text that nothing was chosen by, of {about['check_seeds']} seeds that "
        f"nothing was chosen by; worth: tuned less preset, paired by seed, with Student's interval over seeds. Every "
        f"architecture had {about['trials']} trials{rungs} of {steps:,} steps of "
        f"{about['batch_size']:,} on {about['tokens']:,} activations. Model {about['model']}, text {about['dataset']}, "
        "its part for tuning."
    )


def _rows(worths: Sequence[Worth]) -> list[list[str]]:
    def behind(worth: Worth) -> float:
        return np.inf if worth.chosen.score is None else -worth.chosen.score

    return [worth.row for worth in sorted(worths, key=behind)]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _settings(outcome: Outcome) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in outcome.trial.settings.items())


def _first(reasons: Sequence[str]) -> str:
    more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}"
