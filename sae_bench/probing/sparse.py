"""Sparse probes: the few latents of an SAE that tell two labels apart best, and a probe on them alone.

Shapes: n texts, F latents, k of them chosen.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from sae_bench.probing.probe import Split
from sae_bench.saes.active import as_active
from sae_bench.saes.base import SparseAutoencoder

NUMBERS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Ranked:
    """The latents that tell best, the best first, as columns: each divided by the mean of its nonzero |values|."""

    latents: Int[ndarray, " k"]
    columns: Float[ndarray, "n k"]


@torch.no_grad()
def ranked_latents(
    sae: SparseAutoencoder, x: Float[Tensor, "n D"], labels: Int[ndarray, " n"], split: Split, k: int
) -> Ranked:
    """Rank latents by |difference of the labels' means| over that mean of nonzero |values|, all on the training texts.

    Latents that never fire there come last. The whole matrix of n F numbers is never there at once.
    """
    which = torch.full((len(x),), -1)
    which[torch.from_numpy(split.train)] = torch.from_numpy(labels[split.train])
    sums = torch.zeros(2, sae.config.d_sae, dtype=torch.float64, device=x.device)
    size, n_fired = torch.zeros_like(sums[0]), torch.zeros_like(sums[0])
    chunks = torch.arange(len(x)).split(max(1, NUMBERS_AT_ONCE // sae.config.d_sae))
    for rows in chunks:
        f = _dense(sae, x[rows])
        for label in (0, 1):
            of_label = f[which[rows] == label]
            sums[label] += of_label.sum(0)
            size += of_label.abs().sum(0)
            n_fired += (of_label != 0).sum(0)
    n_of = [int((which == label).sum()) for label in (0, 1)]
    scale = torch.where(n_fired > 0, size / n_fired.clamp(min=1), 1.0)
    score = (sums[1] / n_of[1] - sums[0] / n_of[0]).abs() / scale
    best = score.argsort(descending=True, stable=True)[:k]
    columns = torch.cat([_dense(sae, x[rows])[:, best] / scale[best] for rows in chunks])
    return Ranked(best.cpu().numpy(), columns.cpu().numpy())


def _dense(sae: SparseAutoencoder, x: Float[Tensor, "n D"]) -> Float[Tensor, "n F"]:
    return as_active(sae.encode(x)).to_dense().double()


def standardised(x: Float[Tensor, "n D"], split: Split) -> Float[ndarray, "n D"]:
    """x with mean 0 and variance 1 on the training texts, coordinate by coordinate."""
    whole = x.double().cpu().numpy()
    train = whole[split.train]
    spread = train.std(0)
    return np.asarray((whole - train.mean(0)) / np.where(spread > 0, spread, 1.0))
