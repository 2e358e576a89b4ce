"""What the package's annotations say is checked in tests: kinds everywhere, and shapes where they are written."""

import pytest
import torch

from sae_bench.leaderboard.bootstrap import Estimate, smallest_difference
from sae_bench.records.run_folder import RunFolder
from sae_bench.saes.active import Active, Dense, decode


def test_a_value_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="path"):
        RunFolder("text, which it would keep")


def test_a_shape_is_checked_where_torch_would_broadcast():
    f, W_dec = Active(Dense(torch.ones(2, 3, dtype=torch.bool)), torch.ones(2, 3)), torch.ones(3, 5)
    assert decode(f, W_dec, torch.ones(5)).shape == (2, 5)
    with pytest.raises(TypeError, match="b_dec"):
        decode(f, W_dec, torch.ones(1))


def test_beside_what_writes_shapes_the_rest_is_checked():
    sources = ((1.0, 5.0),)
    assert Estimate(1.0, 0.5, sources, over_seeds=True).interval() is not None
    with pytest.raises(TypeError, match="stderr"):
        Estimate(1.0, "0.5", sources, over_seeds=True)
    with pytest.raises(TypeError, match="level"):
        Estimate(1.0, 0.5, sources, over_seeds=True).interval("0.95")
    with pytest.raises(TypeError, match="family"):
        smallest_difference((1.0, 5.0), (1.0, 5.0), "one")
