"""What a metric can tell: by hand, by simulation, and as people are told."""

import math
from typing import Any

import numpy as np
import pytest
from command import bench
from scipy import stats
from synthetic import records, typed, write_run

from sae_bench.leaderboard import bootstrap, power, replicates
from sae_bench.leaderboard.bootstrap import Design
from sae_bench.leaderboard.compare import comparisons, pooled_over_seeds
from sae_bench.leaderboard.power import Power

FLOOR, N_DOCUMENTS, N_SEEDS, KINDS = 0.3, 60, 3, 4


def power_by_hand(**changed: Any) -> Power:
    """Documents give a difference the variance .04, seeds 2 * .3^2 / 3 = .06."""
    given: dict[str, Any] = {
        "metric": "m", "noise": FLOOR, "documents": 0.04, "of_documents": N_DOCUMENTS - 1.0, "kinds": KINDS,
        "family": 6, "design": Design(N_DOCUMENTS, N_SEEDS, KINDS),
    }  # fmt: skip
    return Power(**given | changed)


def test_where_only_documents_vary_it_is_students_distribution() -> None:
    t = stats.t(N_DOCUMENTS - 1)
    wanted = 0.2 * (t.ppf(1 - 0.025 / 6) + t.ppf(0.8))
    assert power_by_hand(noise=0.0).smallest_difference() == pytest.approx(wanted, rel=1e-6)


def test_more_documents_and_more_seeds_tell_smaller_differences() -> None:
    one = power_by_hand()
    here = one.smallest_difference()
    more_documents, more_seeds = one.smallest_difference(n_documents=240), one.smallest_difference(n_seeds=6)
    assert here is not None
    assert more_documents is not None
    assert more_seeds is not None
    assert more_documents < here
    assert more_seeds < here
    # Four times the documents of a metric without noise of seeds: half the difference, but for degrees of freedom.
    quiet = power_by_hand(noise=0.0, of_documents=1e6, design=Design(1_000_001, N_SEEDS, KINDS))
    assert quiet.smallest_difference(n_documents=4_000_004) == pytest.approx(quiet.smallest_difference() / 2, rel=1e-3)  # type: ignore[operator]


def test_seeds_needed_is_the_first_number_that_suffices() -> None:
    one = power_by_hand()
    for wanted in (0.9, 1.2, 1.6):
        seeds = one.seeds_needed(wanted)
        assert seeds is not None
        assert one.smallest_difference(seeds) <= wanted  # type: ignore[operator]
        assert seeds == 2 or one.smallest_difference(seeds - 1) > wanted  # type: ignore[operator]
    assert one.seeds_needed(0.2) is None  # the documents alone are above it


@pytest.mark.parametrize(("n_seeds", "n_documents"), [(1, 84), (3, 29)])
def test_one_seed_and_too_few_documents_tell_nothing(n_seeds: int, n_documents: int) -> None:
    assert power_by_hand().smallest_difference(n_seeds, n_documents) is None


def test_where_nothing_varied_nothing_is_told() -> None:
    """As of a comparison, whose standard error is then unknown: not a difference of 0."""
    still = power_by_hand(noise=0.0, documents=0.0)
    assert still.smallest_difference() is None
    assert still.seeds_needed(1.0) is None


@pytest.mark.parametrize("floor", [0.1, FLOOR, 1.0])
def test_the_smallest_difference_is_told_in_about_four_of_five_experiments(floor: float) -> None:
    """Normal documents and seeds, variances unknown to the test, as in a comparison of four architectures."""
    draw, n_experiments = np.random.default_rng(0), 300
    design = Design(N_DOCUMENTS, N_SEEDS, KINDS)
    # Documents' deviations of one architecture: of variance G * .04 / 2, so that a difference of means has .04.
    spread = math.sqrt(N_DOCUMENTS * 0.04 / 2)
    wanted = power_by_hand(noise=floor).smallest_difference()
    assert wanted is not None
    told = 0
    for _ in range(n_experiments):
        level = np.array([wanted, 0, 0, 0])[:, None, None] + draw.normal(0, floor, (KINDS, N_SEEDS, 1))
        values = level + spread * draw.normal(size=(KINDS, 1, N_DOCUMENTS))
        replicates = [_replicates(of, design) for of in values]
        between = {str(i): bootstrap.seed_variance(of, design) for i, of in enumerate(replicates)}
        seeds, degrees = pooled_over_seeds(between, {"0": 1.0, "1": -1.0}, design)
        found = bootstrap.difference(replicates[0] - replicates[1], design, seeds, degrees, 6)
        told += found.p_value <= 0.05
    assert 0.68 <= told / n_experiments <= 0.9


def _replicates(values: Any, design: Design) -> Any:
    """Of one architecture's values, [seeds, documents], the mean in every replicate."""
    by_seed = []
    for row in values:
        found = np.full(design.n_replicates, row.mean())
        found[design.documents] = (row.sum() - row) / (len(row) - 1)
        by_seed.append(found)
    return replicates.over_seeds(by_seed, design)


def test_the_noise_floor_is_the_deviation_between_seeds() -> None:
    """Seeds' curves at a target are their values there: of two the variance is half of the squared difference."""
    made = typed(records(labels=("gated", "topk"), seeds=(0, 1)))
    comparison = comparisons(made, ["fve"])[0]
    found = power.power_of(comparison, "fve", (32.0,))
    assert found is not None
    squares = []
    for label in ("gated", "topk"):
        one, other = (
            record.scores["fve"].value
            for record in made
            if record.task == "reconstruction" and record.sae.label == label and record.sae.target == 32
        )
        squares.append((one - other) ** 2 / 2)  # type: ignore[operator]
    # Curves are read at L0 32, which is near the target and not on it.
    assert found.noise == pytest.approx(math.sqrt(sum(squares) / 2), rel=0.35)
    assert found.family == 2  # one pair, at one L0 and by area


def test_a_board_says_what_it_can_tell_and_what_more_would_take(tmp_path: Any, capsys: Any) -> None:
    run = str(write_run(tmp_path / "run"))
    assert bench("power", run, "--at-l0", "32", "--difference", "0.001") == 0
    text = capsys.readouterr().out
    assert "noise floor" in text
    assert "to tell 0.001" in text
    assert "fve" in text
    assert bench("power", run, "--at-l0", "32", "--format", "csv") == 0
    assert capsys.readouterr().out.startswith("metric,noise floor,told (80%),setting\n")
    assert bench("power", run, "--at-l0", "5000") == 2
    assert "--at-l0" in capsys.readouterr().err


def test_one_seed_says_so(tmp_path: Any, capsys: Any) -> None:
    run = str(write_run(tmp_path / "run", records(seeds=(0,))))
    assert bench("power", run, "--at-l0", "32", "--difference", "0.1") == 0
    assert "run two seeds first" in capsys.readouterr().out
