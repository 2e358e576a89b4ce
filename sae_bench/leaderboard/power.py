"""What a metric can tell: its noise floor, the smallest difference a board tells, and what a smaller one would take.

The noise floor is the standard deviation over reseeded trainings. Of two architectures' difference the variance is that
of documents, which falls with their number, and that of seeds, which falls with theirs; `compare` judges it by the same
sources (`bootstrap.difference`). So the records of a small board say what a larger one would tell, before it is run.

Shapes: R replicates.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np
from tabulate import tabulate

from sae_bench.errors import UserError, one_line
from sae_bench.leaderboard import bootstrap, render
from sae_bench.leaderboard.bootstrap import MIN_DEGREES, MIN_DOCUMENTS, Design
from sae_bench.leaderboard.compare import Comparison
from sae_bench.leaderboard.curves import common_range
from sae_bench.leaderboard.matched import AT_L0
from sae_bench.leaderboard.setting import Setting

MAX_SEEDS = 100
"""More are not tried: whoever needs them needs another metric."""


@dataclass(frozen=True)
class Power:
    """What two architectures' difference in a metric varies by, as a board's records show it."""

    metric: str
    noise: float | None
    """Standard deviation over reseeded trainings, pooled over architectures and L0s; None: the board has one seed."""
    documents: float
    """Variance of a difference that comes from the documents, the median over pairs and L0s."""
    of_documents: float
    """Its degrees of freedom, the median."""
    kinds: int
    """Architectures whose seeds are pooled."""
    family: int
    """Differences that a table of the metric judges together."""
    design: Design

    def smallest_difference(self, n_seeds: int | None = None, n_documents: int | None = None) -> float | None:
        """The difference that so many seeds and documents tell in four of five boards (default: those of this one).

        None where that is unknown: one seed says nothing of seeds, too few documents give no interval, and a comparison
        tells nothing where nothing varied.
        """
        seeds, documents = n_seeds or self.design.n_seeds, n_documents or self.design.n_documents
        if self.noise is None or seeds < 2 or documents < MIN_DOCUMENTS:
            return None
        more = documents / self.design.n_documents
        degrees = min(max(self.of_documents * more, MIN_DEGREES), documents - 1.0)
        of_seeds = 2 * self.noise**2 / seeds, self.kinds * (seeds - 1.0)
        found = bootstrap.smallest_difference((self.documents / more, degrees), of_seeds, self.family)
        return found if 0 < found < math.inf else None

    def seeds_needed(self, difference: float, n_documents: int | None = None) -> int | None:
        """The fewest seeds that tell a difference; None: no number up to MAX_SEEDS does."""
        for seeds in range(2, MAX_SEEDS + 1):
            least = self.smallest_difference(seeds, n_documents)
            if least is not None and least <= difference:
                return seeds
        return None


def power_of(comparison: Comparison, metric: str, l0s: Sequence[float] = AT_L0) -> Power | None:
    """What a board shows of a metric at some L0s; None where it has no two architectures with it at one of them.

    Controls say nothing of how much a training varies.
    """
    design, noise, documents, degrees, family = comparison.design, [], [], [], 0
    controls = {one.label for one in comparison.architectures if one.control}
    for at_l0 in comparison.heights(metric, l0s).values():
        of = {label: values for label, values in at_l0.items() if label not in controls}
        noise += [bootstrap.seed_variance(values, design) * design.n_seeds for values in of.values()]
        for one, other in combinations(of.values(), 2):
            family += 1
            variance, freedom = bootstrap.document_variance(one - other, design)
            documents.append(variance)
            degrees.append(freedom)
    if not family:
        return None
    points = {label: of for label, of in comparison.points(metric).items() if label not in controls}
    if common_range([of.l0[0] for of in points.values()]):
        family += math.comb(len(points), 2)  # by area, too
    floor = float(np.sqrt(np.mean(noise))) if design.n_seeds > 1 else None
    return Power(metric, floor, median(documents), median(degrees), len(points), family, design)


def powers(
    comparisons: Sequence[Comparison], metrics: Sequence[str], l0s: Sequence[float] = AT_L0
) -> Iterator[tuple[Comparison, Power]]:
    """What each metric can tell, setting by setting.

    Raises:
        UserError: none of the metrics can be compared at any of the L0s.
    """
    found = False
    for comparison in comparisons:
        for metric in metrics:
            if power := power_of(comparison, metric, l0s):
                found = True
                yield comparison, power
    if not found:
        at = ", ".join(f"{l0:g}" for l0 in l0s)
        raise UserError(f"no two architectures were measured on both sides of an L0 of {at}: give another --at-l0")


HEADER = ("metric", "noise floor", "told (80%)")


def written(
    form: str,
    comparisons: Sequence[Comparison],
    metrics: Sequence[str],
    l0s: Sequence[float] = AT_L0,
    difference: float | None = None,
) -> str:
    """A table for each setting, as text, md, tex or csv; with a difference, what it takes to tell it.

    Raises:
        UserError: as `powers`.
    """
    found: dict[Setting, list[Power]] = {}
    for comparison, power in powers(comparisons, metrics, l0s):
        found.setdefault(comparison.setting, []).append(power)
    header = [*HEADER, *(() if difference is None else (f"to tell {difference:g}",))]
    rows = {setting: [_row(power, difference) for power in of] for setting, of in found.items()}
    if form == "csv":
        import pandas as pd

        frames = [pd.DataFrame(of, columns=header).assign(setting=str(setting)) for setting, of in rows.items()]
        return pd.concat(frames).to_csv(index=False)
    style, escape = FORMS[form]
    tables = [
        f"{escape(str(setting))}\n\n"
        + tabulate([[*map(escape, row)] for row in of], header, style, disable_numparse=True)
        for setting, of in rows.items()
    ]
    return "\n\n".join([*tables, escape(EXPLANATION)]) + "\n"


FORMS: dict[str, tuple[str, render.Escape]] = {
    "text": ("simple", one_line),
    "md": ("github", render.escape_markdown),
    "tex": ("latex_booktabs", str),  # tabulate escapes its cells
}
EXPLANATION = (
    "noise floor: standard deviation over reseeded trainings. told (80%): the smallest difference of two architectures "
    "that a board of these seeds and documents tells in four of five cases, at matched L0 and as one of all that its "
    "table judges together (5%). Variances are estimates from this board: a plan, not a promise."
)


def _row(power: Power, difference: float | None) -> list[str]:
    floor = "one seed: unknown" if power.noise is None else f"{power.noise:.2g}"
    least = power.smallest_difference()
    row = [power.metric, floor, "unknown" if least is None else f"{least:.2g}"]
    return row if difference is None else [*row, _what_it_takes(power, difference)]


def _what_it_takes(power: Power, difference: float) -> str:
    """Seeds on the documents here, or more documents where no number of seeds suffices."""
    if power.noise is None:
        return "unknown: run two seeds first"
    here = power.design.n_documents
    if seeds := power.seeds_needed(difference):
        return f"{seeds} seeds, {here} documents"
    for more in (2, 4, 8, 16, 32, 64, 128, 256):
        if seeds := power.seeds_needed(difference, more * here):
            return f"{seeds} seeds, {more * here} documents ({more}x --eval-tokens)"
    return f"more than {MAX_SEEDS} seeds"
