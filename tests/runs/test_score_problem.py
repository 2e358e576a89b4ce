"""Every score with a formula is held against the record's own sums: what is of other sums, or of none, is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sae_bench.leaderboard.bootstrap import Design
from sae_bench.leaderboard.replicates import metric_replicates
from sae_bench.records.schema import read_record
from sae_bench.runs.verify import score_problem

BOARD = Path(__file__).parents[2] / "results" / "gemma-3-270m-probes_2-core-cpu_2026-11-28" / "records"


@pytest.fixture
def geometry():
    """A published record one of whose sums has a point in its name."""
    return read_record(BOARD / "topk.layer_9.resid_post.w2560.l0_16.seed0.geometry.json")


def test_a_published_record_is_of_its_own_sums(geometry):
    assert geometry.scores["nth_projection"].formula == "nth_0.375 / norm"
    assert score_problem(geometry) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": 3.0}, "nth_projection is 3, its sums give 0."),
        ({"formula": "norm / nth_0.375"}, "nth_projection is 0."),
        ({"formula": "nth_0.6 / norm"}, "nth_projection is nth_0.6 / norm, of sums that it does not have ('nth_0.6')"),
        ({"formula": "nth_0.375"}, "nth_projection is nth_0.375, which is no ratio of sums"),
    ],
)
def test_what_is_of_other_sums_or_of_none_is_named(geometry, change, said):
    geometry.scores["nth_projection"] = replace(geometry.scores["nth_projection"], **change)
    assert score_problem(geometry).startswith(said)


def test_a_ratio_of_sums_with_a_point_in_their_name_is_worked_out_without_each_document(geometry):
    sums = geometry.by_document
    above, below = np.array(sums["nth_0.375"]), np.array(sums["norm"])
    design = Design(len(above), 1)
    found = metric_replicates(geometry, "nth_projection", design)
    np.testing.assert_allclose(found[design.documents], (above.sum() - above) / (below.sum() - below))
