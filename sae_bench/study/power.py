"""How many latents, seen by how many raters, tell two architectures apart: what a study takes, before it is made.

Of a yes-or-no answer with share p the variance is p (1 - p). A part of it is the latents', which raters agree on; the
rest is what one rater makes of one latent, once what he grants all latents is taken out, which cancels between
architectures that the same raters see. So of a difference the variance is 2 (of_latents + of_answers / overlap) /
latents, and it is judged by Student's t with `crossed`'s degrees of freedom.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from tabulate import tabulate

from sae_bench.errors import UserError
from sae_bench.study import crossed
from sae_bench.study.ratings import Ratings
from sae_bench.study.results import groups_of

POWER = 0.8
"""How often a difference is to be told that is called tellable."""
MOST = 100_000
"""Latents; more are not tried."""
OVERLAPS = (1, 2, 3, 5, 10)
SECONDS = 45.0
"""For a latent, where no study has measured it: an assumption."""


@dataclass(frozen=True)
class Variances:
    """Of one answer: what the latents' part is, and what is left beside latents and raters."""

    of_latents: float
    of_answers: float
    seconds: float = SECONDS
    """For one latent."""

    @staticmethod
    def assumed(share: float = 0.5, alpha: float = 0.4) -> "Variances":
        """Those of answers with this share of yes and this agreement: alpha is the latents' part of the variance."""
        return Variances(alpha * share * (1 - share), (1 - alpha) * share * (1 - share))

    @staticmethod
    def of(ratings: Ratings) -> "Variances | None":
        """Those of a study's answers, yes against the rest, the mean over architectures; None where it is too small.

        Raises:
            UserError: everybody said the same of every latent.
        """
        found = [crossed.components(ratings.yes[items]) for items in groups_of(ratings).values()]
        known = [one for one in found if one is not None]
        if not known:
            return None
        of_latents, of_answers = (float(np.mean(of)) for of in zip(*known, strict=True))
        if of_latents + of_answers <= crossed.ROUNDING**2:
            said = "yes" if np.nanmean(ratings.yes) > 0.5 else "no or maybe"
            raise UserError(
                f"study {ratings.study.id}: all answers are {said}, which says nothing of how answers differ: plan "
                "without it, by --share and --alpha"
            )
        seconds = ratings.seconds[np.isfinite(ratings.seconds)]
        return Variances(of_latents, of_answers, float(np.median(seconds)) if len(seconds) else SECONDS)

    def smallest_difference(self, n_latents: int, n_raters: int, overlap: int, family: int = 1) -> float:
        """The difference of two shares that such a study tells four times in five, as one of a family of that size."""
        total = 2 * (self.of_latents + self.of_answers / overlap) / n_latents
        # What the jackknife over raters shows though they differ in nothing between architectures.
        of_raters = total if overlap == 1 else 2 * self.of_answers / (overlap - 1) / n_latents * (1 - 1 / n_raters)
        squares = total**2 / (2 * (n_latents - 1)) + (of_raters**2 / (n_raters - 1) if n_raters > 1 else 0.0)
        degrees = max(total**2 / squares, min(2.0 * (n_latents - 1), max(n_raters - 1.0, 1.0)))
        tails = [float(stats.t.isf(tail, degrees)) for tail in ((1 - crossed.LEVEL) / 2 / family, 1 - POWER)]
        return math.sqrt(total) * sum(tails)

    def latents_needed(self, difference: float, n_raters: int, overlap: int, family: int = 1) -> int | None:
        """The fewest latents of each architecture that tell a difference; None: MOST do not."""
        low, high = 2, MOST
        if self.smallest_difference(high, n_raters, overlap, family) > difference:
            return None
        while low < high:  # more latents tell more
            middle = (low + high) // 2
            told = self.smallest_difference(middle, n_raters, overlap, family) <= difference
            low, high = (low, middle) if told else (middle + 1, high)
        return low


def rows(
    variances: Variances, difference: float, n_raters: int, n_architectures: int = 2
) -> Iterator[tuple[int, int | None, int | None, float | None]]:
    """For each overlap that so many raters allow: latents of each architecture, of each rater, and his hours."""
    for overlap in OVERLAPS:
        if overlap <= n_raters:
            latents = variances.latents_needed(difference, n_raters, overlap, math.comb(n_architectures, 2))
            of_rater = None if latents is None else math.ceil(n_architectures * latents * overlap / n_raters)
            hours = None if of_rater is None else of_rater * variances.seconds / 3600
            yield overlap, latents, of_rater, hours


HEADER = ("raters of a latent", "latents of each architecture", "latents of each rater", "hours of each rater")


def written(
    variances: Variances, differences: Sequence[float], n_raters: int, n_architectures: int, form: str = "simple"
) -> str:
    """What it takes, as a table for each difference."""
    pairs = math.comb(n_architectures, 2)
    total = variances.of_latents + variances.of_answers
    about = (
        f"{n_raters} raters, {n_architectures} architectures ({pairs} pair{'s' if pairs > 1 else ''}, "
        "judged together), told in four of five studies at the 5% level. "
        f"Computed from the variance of an answer, {total:.2g}, of which {variances.of_latents / total:.0%} is the "
        f"latents', and {variances.seconds:.0f} s for a latent; repeats apart."
    ).replace("architectures (1 pair, judged together)", "architectures")
    tables = []
    for difference in differences:
        body = [
            [str(overlap), _count(latents), _count(of_rater), "-" if hours is None else f"{hours:.1f}"]
            for overlap, latents, of_rater, hours in rows(variances, difference, n_raters, n_architectures)
        ]
        table = tabulate(body, HEADER, form, disable_numparse=True, colalign=("right",) * len(HEADER))
        tables.append(f"to tell {100 * difference:g} points:\n\n{table}")
    return "\n\n".join([*tables, about]) + "\n"


def _count(n: int | None) -> str:
    return f"more than {MOST:,}" if n is None else f"{n:,}"
