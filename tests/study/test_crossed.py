"""Shares from raters have intervals over latents and raters, and alpha is Krippendorff's."""

import numpy as np
import pytest

from sae_bench.study import crossed
from sae_bench.study.agreement import alpha, as_counts
from sae_bench.study.power import Variances

GAP = np.nan


def test_a_share_by_hand_each_latent_counts_once():
    """Latents: (1 + 0) / 2, 1, 0 (seen once): .5, not 3 / 5. Variance of the latents: .25 / 3."""
    answers = np.array([[1, 0, GAP], [1, 1, GAP], [GAP, GAP, 0], [GAP, GAP, GAP]])
    found = crossed.mean(answers)
    assert (found.value, found.n_latents, found.n_raters) == (0.5, 3, 3)
    assert found.stderr >= (0.25 / 3) ** 0.5
    assert crossed.mean(np.full((2, 2), GAP)) is None
    assert crossed.mean(np.array([[1.0, 0.0]])).share_interval() is None, "one latent says nothing of others"


def test_of_raters_who_all_agree_the_interval_is_that_of_the_latents_alone():
    """Nothing is left for raters: Student's t, then Wilson's formula with p (1 - p) / stderr^2 answers."""
    said = np.array([1, 1, 0, 1, 0, 1, 1, 1.0])
    found = crossed.mean(np.repeat(said[:, None], 4, axis=1))
    assert found.stderr == pytest.approx(said.std(ddof=1) / 8**0.5)
    assert found.degrees == pytest.approx(7)
    low, high = crossed.mean(np.ones((20, 3))).share_interval()
    assert high == 1
    assert low == pytest.approx(20 / (20 + 2.093**2), abs=1e-3), "all say yes: 20 latents' Wilson"


def test_what_differs_in_its_last_bits_differs_in_nothing():
    """Means of .1 by three raters, by two and by one are not the same number; an error of 1e-17 would be certainty."""
    answers = np.full((20, 3), 0.1)
    answers[::2, 0] = answers[::5, 1] = GAP
    assert np.ptp(np.nanmean(answers, axis=1)) > 0
    found = crossed.mean(answers)
    assert found.stderr == 0
    assert found.share_stderr() == pytest.approx((3 / 22 * 19 / 22 / 20) ** 0.5)
    apart = crossed.difference(answers, answers[:, [1, 2, 0]])
    assert (apart.stderr, apart.p_value(), apart.interval()) == (0, None, None)
    assert alpha(np.array([[3, 0], [0, 3]] * 10), "nominal").interval is None


@pytest.mark.parametrize(("said", "share"), [(1.0, 21 / 22), (0.0, 1 / 22), (0.5, 0.5)])
def test_where_all_latents_are_alike_a_share_is_not_certain(said, share):
    """A board's differences take the standard error: 0 would make any difference from it certain."""
    found = crossed.mean(np.full((20, 2), said))
    assert found.stderr == 0
    assert found.share_stderr() == pytest.approx((share * (1 - share) / 20) ** 0.5)


def test_raters_who_differ_by_less_than_chance_cost_no_degrees_below_theirs():
    """What a jackknife over raters shows by chance is taken off; an interval of a share is none of [0, 1] for it."""
    draw = np.random.default_rng(4)
    found = [crossed.mean(world(draw, 0.7, 20, 4, 3, alpha=0.05)) for _ in range(200)]
    assert min(one.degrees for one in found) == 3, "of four raters"
    assert max(np.ptp(one.share_interval()) for one in found) < 0.75


def test_what_a_rater_grants_all_latents_cancels_in_a_difference():
    """Rater 2 says 1/4 more of everything: each share's error holds that, the difference's does not."""
    draw = np.random.default_rng(0)
    mild = np.array([0, 0.25, 0, 0])
    one, other = ((draw.random((30, 1)) < p) * 0.5 + mild for p in (0.7, 0.3))
    alike = crossed.difference(one - mild, other - mild)
    found = crossed.difference(one, other)
    assert found.value == pytest.approx(alike.value)
    assert found.stderr == pytest.approx(alike.stderr)
    assert crossed.mean(one).stderr > 1.2 * crossed.mean(one - mild).stderr


def world(draw, share, n_latents, n_raters, overlap, alpha=0.4):
    """Yes or no; latents differ so that two raters agree by alpha. Raters see latents in turn."""
    of = draw.beta(share * (1 - alpha) / alpha, (1 - share) * (1 - alpha) / alpha, n_latents)
    asked = (np.arange(n_raters) - np.arange(n_latents)[:, None]) % n_raters < overlap
    return np.where(asked, draw.random((n_latents, n_raters)) < of[:, None], np.nan)


def test_intervals_cover_and_planned_studies_tell_what_they_were_planned_for():
    draw, n, difference = np.random.default_rng(1), 300, 0.3
    n_latents = Variances.assumed().latents_needed(difference, 5, 3)
    told, covered = 0, 0
    for _ in range(n):
        one, other = (world(draw, 0.5 + sign * difference / 2, n_latents, 5, 3) for sign in (1, -1))
        found = crossed.difference(one, other)
        told += found.p_value() <= 0.05
        low, high = crossed.mean(one).share_interval()
        covered += low <= 0.65 <= high
    assert 0.72 <= told / n <= 0.90, "four of five"
    assert 0.92 <= covered / n <= 0.99


def test_more_raters_of_a_latent_need_fewer_latents_and_a_pilot_tells_how_many():
    needed = [Variances.assumed().latents_needed(0.1, 5, overlap) for overlap in (1, 2, 3, 5)]
    assert needed == sorted(needed, reverse=True)
    of_latents, of_answers = crossed.components(world(np.random.default_rng(2), 0.5, 4000, 5, 3))
    assert of_latents == pytest.approx(0.4 * 0.25, abs=0.01)
    assert of_answers == pytest.approx(0.6 * 0.25, abs=0.01)


# --- agreement -----------------------------------------------------------------------------------------------------

WORKED = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, GAP, GAP, GAP],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, GAP, 3],
    [GAP, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, GAP],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, GAP],
]).T - 1  # fmt: skip
"""The example of Krippendorff (2011), section C: four observers, twelve units, gaps."""


def test_alpha_is_krippendorffs_where_he_works_it_out():
    counts = as_counts(WORKED, 5)
    assert alpha(counts, "nominal").value == pytest.approx(0.743, abs=5e-4)
    assert alpha(counts, "ordinal").value == pytest.approx(0.815, abs=5e-4)
    assert alpha(counts, "nominal").n_units == 11, "the twelfth was seen once"
    binary = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0.0]]).T
    assert alpha(as_counts(binary, 2), "nominal").value == pytest.approx(0.095, abs=5e-4), "section A"


def test_where_nobody_can_tell_alpha_says_why():
    assert alpha(as_counts(np.ones((4, 3)), 3), "ordinal").note == "all answers are the same"
    assert alpha(as_counts(np.array([[1.0, GAP], [GAP, 0.0]]), 3), "ordinal").note == "no unit was seen twice"


def test_the_interval_of_alpha_by_hand():
    """Four units of two raters, yes/yes, yes/yes, no/no, yes/no; each left out in turn, by Student's t of 3 degrees."""
    counts = np.array([[0, 2], [0, 2], [2, 0], [1, 1]])
    found = alpha(counts, "nominal")
    left_out = np.array([alpha(np.delete(counts, i, axis=0), "nominal").value for i in range(4)])
    assert left_out == pytest.approx([4 / 9, 4 / 9, 0, 1])
    stderr = (3 / 4 * np.square(left_out - left_out.mean()).sum()) ** 0.5
    assert found.value == pytest.approx(8 / 15)
    assert found.interval == pytest.approx((8 / 15 - 3.182 * stderr, 1.0), abs=1e-3), "no alpha is above 1"
    assert alpha(counts[:2], "nominal").interval is None
    assert alpha(np.array([[1, 2], [3, 1]]), "nominal").interval is None, "two units, and each has an alpha"


def test_categories_between_count_by_half_of_those_in_either():
    """Ordinal: of answers no, maybe, yes with n of each, no and yes are (n_no / 2 + n_maybe + n_yes / 2) apart."""
    counts = np.array([[1, 0, 1], [2, 0, 0], [0, 2, 0], [0, 1, 1]])
    totals = counts.sum(0)
    near, far = (totals[0] + totals[1]) / 2, totals[0] / 2 + totals[1] + totals[2] / 2
    last = (totals[1] + totals[2]) / 2
    observed = 2 * (far**2 + last**2)
    n_no, n_maybe, n_yes = totals
    expected = 2 * (n_no * n_maybe * near**2 + n_no * n_yes * far**2 + n_maybe * n_yes * last**2) / (totals.sum() - 1)
    assert alpha(counts, "ordinal").value == pytest.approx(1 - observed / expected)


def test_random_raters_have_an_alpha_about_0_whose_intervals_cover_it():
    draw, n = np.random.default_rng(3), 200
    found = [alpha(as_counts(draw.integers(0, 3, (40, 4)).astype(float), 3), "ordinal") for _ in range(n)]
    assert np.mean([one.value for one in found]) == pytest.approx(0, abs=0.02)
    assert 0.90 <= np.mean([one.interval[0] <= 0 <= one.interval[1] for one in found]) <= 0.99
