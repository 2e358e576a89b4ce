"""Equal search: as many trials for every architecture, at the same places of their ranges."""

import pytest

from sae_bench.errors import UserError
from sae_bench.registry import ARCHITECTURES, known_architectures
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.saes.knobs import LR, Knob
from sae_bench.tuning.trials import TuneSettings, trials_of, tuned_archs


def test_every_architecture_is_tried_at_the_same_places_and_first_as_the_preset_has_it() -> None:
    rates = set()
    for name in known_architectures(controls=False):
        trials, cls = trials_of(ArchSpec(name=name), "short", 9), ARCHITECTURES[name]
        assert [trial.number for trial in trials] == [*range(9)]
        assert settle(trials[0].spec, "short") == settle(ArchSpec(name=name), "short")
        assert [*trials[1].settings] == ["lr", *cls.knobs]
        assert len(cls.knobs) == 2, "of its own, as every built-in"
        rates.add(tuple(trial.settings["lr"] for trial in trials[1:]))
        for trial in trials:
            settle(trial.spec, "short")
    (rates_of_all,) = rates
    eighths = [int(8 * share) for share in map(LR_share, rates_of_all)]
    assert sorted(eighths) == [*range(8)], "eight points, one in each eighth of the range"


def LR_share(lr: float) -> float:
    from math import log

    return log(lr / LR.low) / log(LR.high / LR.low)


def test_more_trials_begin_with_the_same_ones() -> None:
    few, many = (trials_of(ArchSpec(name="gated"), "short", n) for n in (4, 20))
    assert many[:4] == few


def test_a_knob_goes_from_end_to_end_in_three_digits() -> None:
    rate, share = Knob(1e-3, 1e-1), Knob(0.8, 1.0, log=False)
    assert [rate.at(at) for at in (0, 0.5, 0.9, 1)] == [0.001, 0.01, 0.0631, 0.1]
    assert [share.at(at) for at in (0, 0.5, 1)] == [0.8, 0.9, 1.0]
    with pytest.raises(ValueError, match="low end below"):
        Knob(2, 1)


def test_a_relative_range_is_of_multiples_of_what_the_preset_has() -> None:
    assert [Knob(0.1, 10, relative=True).of(0.02).at(at) for at in (0, 0.5, 1)] == [0.002, 0.02, 0.2]
    assert Knob(0.1, 10).of(0.02) == Knob(0.1, 10)
    one, other = (
        trials_of(ArchSpec(name="jumprelu", settings=settings), "short", 3)
        for settings in ({}, {"penalty": "quadratic"})
    )
    ratios = [mine.settings["l0_penalty"] / its.settings["l0_penalty"] for mine, its in zip(one, other, strict=True)]
    assert ratios == pytest.approx([0.1 / 1.5e-3] * 3, rel=0.01)


def test_what_is_not_trained_by_itself_is_left_out_and_says_why() -> None:
    archs = [ArchSpec(name=name) for name in ("topk", "random", "permuted")]
    own, said = tuned_archs(tuple(archs))
    assert own == archs[:1]
    assert [line.split()[0] for line in said] == ["random", "permuted"]
    with pytest.raises(UserError, match="nothing of this is trained"):
        tuned_archs(tuple(archs[1:]))


def test_a_setting_that_is_looked_for_cannot_be_given() -> None:
    with pytest.raises(UserError, match="aux_coeff is what `tune` looks for"):
        trials_of(ArchSpec(name="topk", settings={"aux_coeff": 0.1}), "short", 3)
    penalty = {"penalty": "tanh"}
    assert (
        trials_of(ArchSpec(name="jumprelu", settings=penalty), "short", 3)[2].spec.settings.items() >= penalty.items()
    )


def test_rungs_keep_one_in_factor_and_are_as_many_times_longer() -> None:
    settings = TuneSettings(trials=20, rungs=3, factor=3)
    assert [settings.n_kept(rung) for rung in range(3)] == [20, 6, 2]
    assert [settings.share(rung) for rung in range(3)] == [9, 3, 1]
    settings.check()
    with pytest.raises(UserError, match="need 27 at least"):
        TuneSettings(trials=20, rungs=4).check()
