"""Dead and dense latents, counted by hand."""

import pytest
import torch
from test_metrics import run
from torch import Tensor

from sae_bench import Result


def density(document: Tensor, counts_by_document: list[list[int]]) -> Result:
    """Latent i fires on the first counts_by_document[i][d] tokens of document d."""
    place = torch.cat([torch.arange(int((document == d).sum())) for d in document.unique()])
    f = torch.stack([place < torch.tensor(counts)[document] for counts in counts_by_document], dim=1).float()
    x = torch.zeros(len(document), 1)
    return run("feature_density", x, x, f=7 * f, document=document, sizes=[33, len(document) - 33])


def test_feature_density_by_hand() -> None:
    """200 tokens in documents of 50, 100, 50; shares are strict: exactly 1% or 10% is not above it."""
    document = torch.arange(3).repeat_interleave(torch.tensor([50, 100, 50]))
    counts = [[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1], [5, 10, 5], [5, 11, 5], [50, 100, 50]]
    result = density(document, counts)
    assert result.per_latent["count"] == [0, 1, 2, 3, 20, 21, 200]
    values = {name: score.value for name, score in result.scores.items()}
    assert values == pytest.approx({"dead_share": 1 / 7, "dense_1pct_share": 4 / 7, "dense_10pct_share": 2 / 7})
    assert result.scores["dead_share"].n == 200
    # Without document 0, 1, 2 in turn there are 2, 1, 1 dead ones: sqrt(2 / 3 * 6 / 9) / 7.
    assert result.scores["dead_share"].stderr == pytest.approx(2 / 21)
    # Above 10% are 2, 1, 2: latent 5 fires on 16 of 150, 10 of 100 (just not), 16 of 150.
    assert result.scores["dense_10pct_share"].stderr == pytest.approx(2 / 21)
    # Above 1% are latents 3 to 6, and latent 2 without document 0 (2 of 150): 5, 4, 4.
    assert result.scores["dense_1pct_share"].stderr == pytest.approx(2 / 21)
    assert sum(result.details["histogram"]) == 6


def test_the_histogram_counts_by_order_of_magnitude() -> None:
    """1 of 200 is 10^-2.30, in the bin from -2.5; all of 200 is 10^0, in the last bin."""
    result = density(torch.zeros(200, dtype=torch.long), [[1], [200], [200], [0]])
    edges, histogram = result.details["log10_frequency_edges"], result.details["histogram"]
    filled = {edges[i]: count for i, count in enumerate(histogram) if count}
    assert filled == {-2.5: 1, -0.25: 2}


def test_documents_of_one_group_bear_no_error() -> None:
    """Documents are dealt into 20 groups: 3 and 23 fall into one."""
    document = torch.tensor([3] * 50 + [23] * 50)
    f = torch.ones(100, 2)
    scores = run("feature_density", torch.zeros(100, 1), torch.zeros(100, 1), f=f, document=document).scores
    assert scores["dead_share"].stderr is None
