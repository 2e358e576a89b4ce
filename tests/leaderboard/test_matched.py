"""The L0s that are compared at unless told otherwise: the usual ones, or such as were measured."""

import pytest
from command import bench
from synthetic import records, typed, write_run

from sae_bench.leaderboard.matched import AT_L0, default_l0s, round_between


@pytest.mark.parametrize(
    ("low", "high", "middle"), [(3, 5, 4), (5, 8, 6), (16, 32, 20), (11, 14, 12), (2, 3, 2.4), (10, 10.5, 10.2)]
)
def test_a_number_between_has_as_few_digits_as_it_can(low, high, middle):
    assert round_between(low, high) == middle


@pytest.mark.parametrize(
    ("targets", "l0s"),
    [((16.0, 64.0), AT_L0), ((3.0, 5.0, 8.0), (4.0, 6.0)), ((200.0, 400.0), (300.0,)), ((5.0,), AT_L0)],
)
def test_where_no_usual_l0_was_measured_those_between_the_wanted_ones_are_taken(targets, l0s):
    assert default_l0s(typed(records(targets=targets))) == l0s


def test_every_setting_has_l0s_of_its_own():
    small, usual = (
        typed(records(targets=(3.0, 5.0, 8.0), sites=("layer_1.resid_post",))),
        typed(records(targets=(16.0, 64.0), sites=("layer_2.resid_post",))),
    )
    assert default_l0s([*small, *usual]) == (4.0, 6.0, *AT_L0)


def test_a_run_of_small_l0s_is_compared_at_them(tmp_path, capsys):
    run = write_run(tmp_path / "run", records(targets=(3.0, 5.0, 8.0)))
    assert bench("compare", run, "--metric", "fve") == 0
    assert "L0 4" in (text := capsys.readouterr().out)
    assert bench("compare", run, "--metric", "fve", "--at-l0", 4, 6) == 0
    assert capsys.readouterr().out == text
