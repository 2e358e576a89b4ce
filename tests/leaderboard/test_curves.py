"""Curves over L0 with known answers: through their points, of scipy, areas and fronts by hand."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from sae_bench.leaderboard.curves import area, at_l0, common_range, pareto_front


def test_curves_go_through_their_points_and_stay_between_them():
    l0, value = np.array([[10.0, 20.0, 80.0]]), np.array([[3.0, 2.9, 1.0]])
    assert at_l0(l0, value, (10.0, 20.0, 80.0)) == pytest.approx(value)
    assert np.all(np.diff(at_l0(l0, value, np.linspace(10, 80, 50).tolist())) <= 0)


@pytest.mark.parametrize("n_targets", [2, 3, 6])
def test_curves_are_the_monotone_cubics_of_scipy_each_with_l0s_of_its_own(n_targets):
    draw = np.random.default_rng(0)
    l0, value = np.sort(draw.uniform(5, 200, (50, n_targets)), axis=1), draw.normal(size=(50, n_targets))
    wanted = (12.0, 50.0, 120.0)
    found = at_l0(l0, value, wanted)
    for x, y, heights in zip(l0, value, found, strict=True):
        scipys = PchipInterpolator(np.log(x), y)
        assert heights == pytest.approx(scipys(np.log(np.clip(wanted, x[0], x[-1]))))
        low, high = x[0] ** 0.9 * x[-1] ** 0.1, x[0] ** 0.2 * x[-1] ** 0.8
        mean = scipys.integrate(np.log(low), np.log(high)) / np.log(high / low)
        assert area(x[None], y[None], (low, high)) == pytest.approx(mean)


def test_targets_of_one_l0_are_averaged_and_one_target_is_a_point():
    same = np.array([[10.0, 20.0, 20.0]]), np.array([[3.0, 2.0, 1.0]])
    assert at_l0(*same, [20.0]) == pytest.approx(1.5)
    assert at_l0(np.array([[16.0]]), np.array([[0.7]]), [16.0]) == pytest.approx(0.7)


def test_the_area_of_a_line_in_log_l0_is_its_middle():
    l0 = np.array([10.0, 20.0, 40.0, 80.0])
    value = np.log2(l0)
    assert area(l0[None], value[None], (10.0, 40.0)) == pytest.approx(np.log2(20))
    assert common_range([l0, np.array([15.0, 200.0])]) == (15.0, 80.0)
    assert common_range([l0, np.array([90.0, 200.0])]) is None


def test_the_pareto_front_by_hand():
    l0, loss = [10, 20, 30, 20, 40], [5.0, 4.0, 4.5, 6.0, 1.0]
    assert pareto_front(l0, loss, up=False) == [0, 1, 4]
    assert pareto_front(l0, [-v for v in loss], up=True) == [0, 1, 4]
