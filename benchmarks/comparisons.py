"""What comparisons reach, by simulation: how often a table has a false difference, what it finds, what intervals cover.

    python benchmarks/comparisons.py                       # the tables of docs/comparing.md, about half an hour

Experiments are drawn from a published board. Documents come with replacement from its own, with the sums that every SAE
has there: their sizes, their tails and how architectures differ on them are real. Seeds add a normal deviate of a
stated variance. `alike` takes the architectures' differences away: numerators and L0s are moved to the mean over
architectures, document by document in proportion to its tokens, so every difference that is found is false.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sae_bench.leaderboard import bootstrap as resample
from sae_bench.leaderboard.compare import MetricComparison, compare, comparisons
from sae_bench.leaderboard.curves import area, at_l0
from sae_bench.records.schema import (
    RATIO,
    Metric,
    Provenance,
    Record,
    SAEDescription,
    Score,
    SiteDescription,
    read_record,
)

BOARD = Path(__file__).parents[1] / "results/gemma-3-270m_2-core-cpu_2026-11-26"
L0S = (20.0, 50.0)
OVER_L0S = 0.5
"""Correlation between an SAE's deviations at two L0s from one seed to another; the board shows .5."""
SPREADS = {"equal": None, "board": None, "one": (1.0, 1.0, 3.0, 1.0)}
"""Standard deviations between seeds, by architecture: all alike, the board's own, or one three times as large."""


@dataclass(frozen=True)
class World:
    """What experiments are drawn from: per-document sums of A architectures at T targets on G documents."""

    labels: tuple[str, ...]
    targets: tuple[float, ...]
    one_minus: bool
    better: Literal["up", "down"] | None
    above: Float[ndarray, "A T G"]
    below: Float[ndarray, " G"]
    active: Float[ndarray, "A T G"]
    tokens: Float[ndarray, " G"]
    between_seeds: Float[ndarray, "A T"]
    """Standard deviations of the metric from one seed to another."""

    @staticmethod
    def read(metric: str, board: Path = BOARD) -> "World":
        """A board's sums, as means over its seeds."""
        records = [read_record(path) for path in sorted(board.glob("records/*.json"))]
        having = [one for one in records if metric in one.scores or "l0" in one.scores]
        one = next(one for one in having if metric in one.scores)
        one_minus, above, below = RATIO.fullmatch(one.scores[metric].formula or "").groups()
        labels = tuple(sorted({one.sae.label for one in having}))
        targets = tuple(sorted({one.sae.target_l0 for one in having}))

        def sums(name: str, of: str) -> ndarray:
            found = {(r.sae.label, r.sae.target_l0, r.sae.seed): r.by_document[name]
                     for r in having if of in r.scores}  # fmt: skip
            seeds = sorted({key[2] for key in found})
            return np.array([[[found[a, t, s] for s in seeds] for t in targets] for a in labels], dtype=float)

        numerators, denominator = sums(above, metric), sums(below, metric)[0, 0, 0]
        values = numerators.sum(-1) / denominator.sum()
        return World(
            labels, targets, bool(one_minus), one.metrics[metric].better, numerators.mean(2), denominator,
            sums("active", "l0").mean(2), sums("tokens", "l0")[0, 0, 0], values.std(2, ddof=1),
        )  # fmt: skip

    def alike(self) -> "World":
        """Every architecture as good as their mean, at the same L0s."""
        heights, l0 = self.above.sum(-1) / self.below.sum(), self.active.sum(-1)
        return replace(
            self,
            above=self.above + (heights.mean(0) - heights)[..., None] * self.below,
            active=self.active * (l0.mean(0) / l0)[..., None],
        )

    def without_largest(self) -> "World":
        """Without the document whose denominator is largest for its tokens."""
        kept = np.arange(len(self.below)) != (self.below / self.tokens).argmax()
        return replace(
            self, above=self.above[..., kept], below=self.below[kept], active=self.active[..., kept],
            tokens=self.tokens[kept],
        )  # fmt: skip

    def seeds_of(self, spread: str, ratio: float, n_seeds: int, n_documents: int) -> Float[ndarray, "A T"]:
        """Standard deviations between seeds, so that in a mean pair's difference seeds have `ratio` times the
        documents' variance."""
        by_target = np.sqrt(np.square(self.between_seeds).mean(0))
        by_label = np.sqrt(np.square(self.between_seeds / by_target).mean(1)) if spread == "board" else SPREADS[spread]
        found = np.outer(np.ones(len(self.labels)) if by_label is None else by_label, by_target)
        rest = self.above - (self.above.sum(-1) / self.below.sum())[..., None] * self.below
        pairs = list(combinations(range(len(self.labels)), 2))
        documents = np.mean([np.var(rest[a] - rest[b], axis=-1) for a, b in pairs]) / self.below.mean() ** 2
        seeds = np.mean([found[a] ** 2 + found[b] ** 2 for a, b in pairs])
        return np.asarray(found * np.sqrt(ratio * documents / n_documents * n_seeds / seeds))

    def truth(self) -> dict[float | None, float]:
        """The metric of architectures that are alike at each place, by the curve through the true heights."""
        l0, height = (of.sum(-1)[:1] for of in (self.active / self.tokens.sum(), self.above / self.below.sum()))
        height = 1 - height if self.one_minus else height
        between = float(l0[0, 0]), float(l0[0, -1])
        return {**dict(zip(L0S, at_l0(l0, height, L0S)[0], strict=True)), None: float(area(l0, height, between)[0])}

    def draw(self, draw: np.random.Generator, deviations: ndarray, n_seeds: int, n_documents: int) -> MetricComparison:
        """One experiment, records to comparison."""
        chosen = draw.integers(0, len(self.below), n_documents)
        shape = len(self.labels), n_seeds, len(self.targets)
        common, own = draw.standard_normal((*shape[:2], 1)), draw.standard_normal(shape)
        noise = (OVER_L0S**0.5 * common + (1 - OVER_L0S) ** 0.5 * own) * deviations[:, None]
        records = [
            self._record(label, target, seed, self.above[a, t, chosen] + noise[a, seed, t] * self.below[chosen],
                         self.active[a, t, chosen], chosen)
            for a, label in enumerate(self.labels) for t, target in enumerate(self.targets) for seed in range(n_seeds)
        ]  # fmt: skip
        (comparison,) = comparisons(records, ["metric"])
        return compare(comparison, "metric", L0S)

    def _record(self, label: str, target: float, seed: int, above: ndarray, active: ndarray, chosen: ndarray) -> Record:
        sums = {"above": above, "below": self.below[chosen], "active": active, "tokens": self.tokens[chosen]}
        formulas = {"metric": f"{'1 - ' * self.one_minus}above / below", "l0": "active / tokens"}
        better: dict[str, Literal["up", "down"] | None] = {"metric": self.better, "l0": None}
        return Record(
            task="t", task_version="1", failure=None, details={}, per_latent={},
            by_document={name: of.tolist() for name, of in sums.items()},
            metrics={name: Metric(name, which, "", "") for name, which in better.items()},
            scores={name: Score(0.0, 0.0, 1, formula) for name, formula in formulas.items()},
            sae=SAEDescription(
                id=f"{label}.{target}.{seed}", arch=label, label=label, arch_version="1", d_in=8, d_sae=8, seed=seed,
                site=SiteDescription(name="s"), target_l0=target, coefficient=None, options={}, recipe=None,
            ),
            provenance=Provenance(
                model="m", dataset="", preset="", eval_fingerprint="", eval_documents=len(chosen), config_hash="",
                versions={},
            ),
        )  # fmt: skip


def experiments(
    world: World, n: int, spread: str, ratio: float, n_seeds: int, n_documents: int
) -> Iterator[MetricComparison]:
    """Comparisons of n simulated experiments."""
    deviations = world.seeds_of(spread, ratio, n_seeds, n_documents)
    for i in range(n):
        yield world.draw(np.random.default_rng(i), deviations, n_seeds, n_documents)


def false_differences(world: World, *args: Any) -> dict[str, float]:
    """Architectures that are alike: how many tables have a difference, and what intervals cover."""
    truth, false, of_values, of_differences = world.truth(), [], [], []
    for found in experiments(world, *args):
        false.append(any(not d.tie for d in found.differences))
        of_differences += [_covers(replace(d.estimate, n_hypotheses=1), 0.0) for d in found.differences]
        for place, standings in found.standings.items():
            of_values += [_covers(s.estimate, truth[place]) for s in standings if s.estimate is not None]
    return {
        "false": float(np.mean(false)),
        "values": float(np.mean(of_values)),
        "differences": float(np.mean(of_differences)),
    }


def _covers(of: resample.Estimate, truth: float) -> bool:
    low, high = of.interval()
    return low <= truth <= high


def power(world: World, pairs: Sequence[tuple[str, str]], *args: Any) -> list[float]:
    """With the board's own differences: how often a pair is told apart, over L0s and area."""
    told: dict[tuple[str, str], list[bool]] = {pair: [] for pair in pairs}
    for found in experiments(world, *args):
        for d in found.differences:
            if (d.label, d.other) in told:
                told[d.label, d.other].append(not d.tie)
    return [float(np.mean(of)) for of in told.values()]


def write(*cells: str) -> None:
    """A line of a Markdown table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def by_seeds(world: World, n: int) -> None:
    """False differences, coverage and power by seeds, and by how much of the variance they have."""
    header = ["seeds", "ratio", *(f"false, {spread}" for spread in SPREADS), "values cover", "differences cover",
              "relu - topk", "jumprelu - topk"]  # fmt: skip
    write(*header)
    write(*["---"] * len(header))
    alike, n_documents = world.alike(), len(world.below)
    for n_seeds in (2, 3, 5):
        for ratio in (0.3, 1.0, 5.0):
            found = {spread: false_differences(alike, n, spread, ratio, n_seeds, n_documents) for spread in SPREADS}
            told = power(world, [("relu", "topk"), ("jumprelu", "topk")], n // 2, "board", ratio, n_seeds, n_documents)
            write(str(n_seeds), f"{ratio:g}", *(f"{of['false']:.1%}" for of in found.values()),
                  *(f"{found['equal'][key]:.1%}" for key in ("values", "differences")),
                  *(f"{share:.2f}" for share in told))  # fmt: skip


def by_documents(world: World, n: int) -> None:
    """What the number of documents does, with documents as the only source of variance."""
    write("documents", "false", "values cover", "differences cover")
    write(*["---"] * 4)
    alike = world.alike()
    refused, resample.MIN_DOCUMENTS = resample.MIN_DOCUMENTS, 2
    for n_documents in (3, 5, 10, 20, 30, 40, 84, 200):
        found = false_differences(alike, n, "equal", 0.0, 1, n_documents)
        write(str(n_documents), *(f"{found[key]:.1%}" for key in ("false", "values", "differences")))
    resample.MIN_DOCUMENTS = refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--only", choices=["loss", "fve", "outlier", "documents"])
    given = parser.parse_args()
    loss, fve = World.read("delta_lm_loss"), World.read("fve")
    made: dict[str, tuple[str, Callable[[World, int], None], World]] = {
        "loss": ("delta_lm_loss", by_seeds, loss),
        "fve": ("fve", by_seeds, fve),
        "outlier": ("fve without one document", by_seeds, fve.without_largest()),
        "documents": ("delta_lm_loss, one seed that varies by nothing", by_documents, loss),
    }
    for name, (title, make, world) in made.items():
        if given.only in (None, name):
            print(f"\n{title}:\n", flush=True)
            make(world, given.experiments)


if __name__ == "__main__":
    main()
