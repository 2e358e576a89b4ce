"""Which trial wins: by variance explained at the very L0s wanted, and only if it is near them everywhere."""

import math

import pytest

from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.tuning.outcomes import Measured, Outcome, best
from sae_bench.tuning.trials import Trial
from sae_bench.tuning.worth import Worth

FVU_AT_16, POWER = 0.2, -0.4
WANTED = (16.0, 64.0)


def outcome(number: int, *, off: float = 1.0, worse: float = 1.0, seeds=(0,), **at_64) -> Outcome:
    """A trial whose FVU is `worse` times 0.2 (L0 / 16)^-0.4, and whose L0s are `off` times the wanted ones."""
    saes = []
    for seed in seeds:
        for wanted in WANTED:
            l0 = wanted * off
            fvu = worse * FVU_AT_16 * (l0 / 16) ** POWER
            changed = at_64 if wanted == 64 and seed == seeds[-1] else {}
            saes.append(
                Measured("site, width 8", seed, wanted, **{"l0": l0, "fve": 1 - fvu, "failure": None} | changed)
            )
    return Outcome(Trial(ArchSpec(name="topk"), number, {"lr": 0.004}), tuple(saes))


def numbers(*outcomes: Outcome, winning: bool = True) -> list[int]:
    return [one.trial.number for one in best(outcomes, len(outcomes), winning=winning)]


def test_the_score_is_read_at_the_wanted_l0s_so_too_many_active_latents_are_no_advantage() -> None:
    exact = 1 - FVU_AT_16 * (1 + 4**POWER) / 2
    for off in (0.92, 1.0, 1.09):
        assert outcome(0, off=off).score == pytest.approx(exact, abs=1e-12)
    more_latents = outcome(1, off=1.09, worse=1.01)
    assert more_latents.saes[0].fve > outcome(0).saes[0].fve, "measured, it explains more"
    assert numbers(more_latents, outcome(0)) == [0, 1]


def test_what_misses_one_l0_of_one_seed_by_more_than_a_tenth_does_not_win() -> None:
    near, far = outcome(1, worse=0.5, seeds=(0, 1), l0=70.3), outcome(1, worse=0.5, seeds=(0, 1), l0=70.5)
    worse = outcome(0, seeds=(0, 1))
    assert not near.reasons
    assert far.reasons == ["at L0 64, seed 1: L0 70.5"]
    assert numbers(worse, near) == [1, 0]
    assert numbers(worse, far) == [0, 1]
    assert numbers(worse, far, winning=False) == [1, 0], "it may go on: its L0 is still on its way"


@pytest.mark.parametrize(
    "broken",
    [
        {"failure": "diverged: the loss at step 3 is not finite", "l0": None, "fve": None},
        {"fve": None},
    ],
)
def test_what_fails_anywhere_comes_after_all_that_did_not(broken: dict) -> None:
    failed, far = outcome(2, worse=0.1, **broken), outcome(1, off=1.4)
    assert failed.reasons
    assert failed.score is None
    assert far.score is not None
    assert numbers(failed, far, outcome(0, worse=3)) == [0, 1, 2]


def test_far_from_its_l0s_a_trial_has_no_score_and_is_not_ahead_of_one_that_is_near() -> None:
    far, near = outcome(0, off=1.6, worse=0.1), outcome(1, off=1.4)
    assert far.score is None
    assert numbers(far, near, outcome(2, l0=0.0)) == [1, 0, 2]


def test_of_those_that_are_far_the_nearest_goes_on() -> None:
    assert numbers(outcome(0, off=1.8), outcome(1, off=0.45), outcome(2, off=1.7, worse=0.1)) == [1, 2, 0]


def test_a_trial_without_records_does_not_win() -> None:
    nothing = Outcome(Trial(ArchSpec(name="topk"), 0, {}), ())
    assert nothing.reasons
    assert nothing.score is None
    assert math.isfinite(nothing.rank[2])


def test_a_winner_that_the_check_finds_worse_than_the_preset_or_off_its_l0s_is_not_taken() -> None:
    preset, seeds = outcome(0, seeds=(1, 2)), (1, 2)
    better, worse = outcome(1, worse=0.8, seeds=seeds, fve=0.9081), outcome(2, worse=1.2, seeds=seeds, fve=0.8615)
    taken = Worth.of("topk", [preset, better], better)
    assert taken.chosen is better
    assert taken.interval is not None
    assert 0 < taken.interval[0] < sum(taken.differences) / 2 < taken.interval[1]
    for refused in (worse, outcome(3, off=1.2, worse=0.5, seeds=seeds)):
        kept = Worth.of("topk", [preset, refused], outcome(refused.trial.number))
        assert kept.chosen is preset
        assert "is not taken" in kept.note
    missed = outcome(0, off=1.2, seeds=seeds)
    kept = Worth.of("topk", [missed, worse], worse)
    assert kept.chosen is missed, "it stays, though it misses its L0s"
    assert "is not taken" in kept.note
    assert "preset: at L0" in kept.note
