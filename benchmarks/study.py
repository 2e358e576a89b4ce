"""What the intervals of a manual study cover, by simulation.

    python benchmarks/study.py                             # the table of docs/study-design.md, about five minutes

A rater says yes to a latent where m + a + b + e > 0, all three standard deviations stated: a is the latent's, b the
rater's, e both together's (1, normal). So the true share is known: Phi(m / sqrt(1 + sd_a^2 + sd_b^2)). Latents are seen
by `overlap` of the raters in turn. The pigeonhole bootstrap (Owen 2007) draws latents and raters with replacement, each
for itself, and takes 95% between percentiles of the share.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats
from tabulate import tabulate

from sae_bench.study import crossed


@dataclass(frozen=True)
class World:
    """What raters and latents are like, and how many there are."""

    share: float
    of_latents: float
    of_raters: float
    n_latents: int
    n_raters: int
    overlap: int

    def draw(self, random: np.random.Generator, n_saes: int) -> list[Float[ndarray, "L R"]]:
        """The answers about some SAEs by one set of raters; NaN where a rater was not asked."""
        raters = self.of_raters * random.standard_normal(self.n_raters)
        middle = stats.norm.ppf(self.share) * np.sqrt(1 + self.of_latents**2 + self.of_raters**2)
        latent, turn = np.arange(self.n_latents), np.arange(self.n_raters)
        asked = (turn[None, :] - latent[:, None]) % self.n_raters < self.overlap
        found = []
        for _ in range(n_saes):
            latents = self.of_latents * random.standard_normal(self.n_latents)
            both = random.standard_normal((self.n_latents, self.n_raters))
            yes = middle + latents[:, None] + raters[None, :] + both > 0
            found.append(np.where(asked, yes, np.nan))
        return found


def pigeonhole(answers: Float[ndarray, "L R"], random: np.random.Generator, n: int = 400) -> tuple[float, float]:
    """The interval of a share between percentiles, latents and raters drawn each for itself."""
    n_latents, n_raters = answers.shape
    latents = random.multinomial(n_latents, np.full(n_latents, 1 / n_latents), n).astype(float)
    raters = random.multinomial(n_raters, np.full(n_raters, 1 / n_raters), n).astype(float)
    there = np.isfinite(answers)
    with np.errstate(invalid="ignore"):
        of_latent = (raters @ np.where(there, answers, 0).T) / (raters @ there.T)
    seen = np.isfinite(of_latent)
    found = (latents * np.where(seen, of_latent, 0)).sum(1) / np.maximum((latents * seen).sum(1), 1)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def rows(n_experiments: int) -> Iterator[list[object]]:
    """For each world how often intervals cover: of a share, by this and by the pigeonhole, and of a difference."""
    worlds = [
        World(share, of_latents, of_raters, n_latents, n_raters, overlap)
        for n_latents, n_raters, overlap in ((20, 3, 3), (20, 5, 3), (20, 5, 5), (50, 5, 2), (50, 10, 3))
        for share, of_latents, of_raters in ((0.5, 1, 0.5), (0.8, 1, 0.5), (0.8, 1, 1), (0.95, 1, 0.5), (0.7, 0, 0))
    ]
    for number, world in enumerate(worlds):
        random, covered = np.random.default_rng(number), np.zeros(3)
        for _ in range(n_experiments):
            one, other = world.draw(random, 2)
            share, between = crossed.mean(one), crossed.difference(one, other)
            intervals = share.share_interval(), pigeonhole(one, random), between.interval() or (0.0, 0.0)
            for i, ((low, high), truth) in enumerate(zip(intervals, (world.share, world.share, 0.0), strict=True)):
                covered[i] += low - 1e-12 <= truth <= high + 1e-12
        shares = [f"{of / n_experiments:.1%}" for of in covered]
        yield [world.n_latents, world.n_raters, world.overlap, world.share, world.of_latents, world.of_raters, *shares]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=1000)
    header = ["latents", "raters", "overlap", "share", "sd latents", "sd raters", "share covers",
              "pigeonhole covers", "difference covers"]  # fmt: skip
    print(tabulate(rows(parser.parse_args().experiments), header, "github"))
