"""How a buffer serves activations: its sizes, and the scale of what it serves.

Shapes: N activations, B of them in a batch, D width of a site.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sae_bench.lm.sites import Site

Key = tuple[Site, int]
"""A site and a seed."""

Batch = dict[Key, Float[Tensor, "B D"]]
"""Scaled float32 activations by site and seed."""


def half_size(n_tokens: int, buffer_tokens: int) -> int:
    """Tokens in one half of the buffer."""
    return min(math.ceil(buffer_tokens / 2), n_tokens)


def buffer_size(n_tokens: int, buffer_tokens: int, *, overlap: bool) -> int:
    """Tokens in the whole buffer: two halves, three with `overlap`, and none that a short stream never reaches."""
    half = half_size(n_tokens, buffer_tokens)
    return half * min(2 + overlap, math.ceil(n_tokens / half))


def buffer_bytes(
    sites: Collection[Site], dtype: torch.dtype, n_tokens: int, buffer_tokens: int, *, overlap: bool
) -> int:
    """Memory that the buffer takes on the language model's device, in the language model's dtype."""
    size = buffer_size(n_tokens, buffer_tokens, overlap=overlap)
    return size * sum(site.d_in for site in sites) * dtype.itemsize


@dataclass(frozen=True)
class Serving:
    """How activations are served. `first` leaves out what earlier training has seen: it begins at that activation.

    With `overlap` they are captured while training goes on. None leaves that to the buffer: yes on a CUDA device that
    has the memory, besides `reserved_bytes` for the training itself.
    """

    batch_size: int
    buffer_tokens: int
    reuse: int
    seeds: Sequence[int]
    overlap: bool | None = None
    reserved_bytes: int = 0
    first: int = 0

    def n_steps(self, n_tokens: int) -> int:
        """Batches in all that activations up to number `n_tokens` make."""
        return (n_tokens - self.first) * self.reuse // self.batch_size


@dataclass(frozen=True)
class Scaling:
    """Per site, the scalar C with E||x / C||^2 = 1, and the mean of x / C."""

    scale: dict[Site, float]
    mean: dict[Site, Float[Tensor, " D"]]

    @staticmethod
    def measured(rows: Mapping[Site, Float[Tensor, "N D"]]) -> "Scaling":
        """That of some activations."""
        scale, mean = {}, {}
        for site, of_site in rows.items():
            squares = torch.zeros((), dtype=torch.float64, device=of_site.device)
            total = torch.zeros(site.d_in, dtype=torch.float64, device=of_site.device)
            for some in of_site.split(8192):
                x = some.double()
                squares += x.square().sum()
                total += x.sum(0)
            scale[site], mean[site] = scale_and_mean(squares, total, len(of_site))
        return Scaling(scale, mean)

    @staticmethod
    def of_state(state: Mapping[str, Any], sites: Sequence[Site], device: torch.device) -> "Scaling":
        """That of a checkpoint."""
        return Scaling(
            {site: state["scale"][site.name] for site in sites},
            {site: state["mean"][site.name].to(device) for site in sites},
        )

    def applied(self, rows: Mapping[Key, Float[Tensor, "B D"]]) -> Batch:
        """A batch of activations, scaled; float32 ones are overwritten."""
        return {(site, seed): x.float().div_(self.scale[site]) for (site, seed), x in rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """What `of_state` reads."""
        return {
            "scale": {site.name: scale for site, scale in self.scale.items()},
            "mean": {site.name: mean for site, mean in self.mean.items()},
        }


def scale_and_mean(
    squares: Float64[Tensor, ""], total: Float64[Tensor, " D"], n: int
) -> tuple[float, Float[Tensor, " D"]]:
    """The input scale, and the mean of scaled activations, from sums over n activations; this reads the device."""
    scale = math.sqrt(float(squares) / n)
    return scale, (total / n / scale).float()
