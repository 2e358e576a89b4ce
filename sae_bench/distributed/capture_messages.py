"""What a shared capture tells its readers: batches, and with them all that they need to go on without it.

Activations travel as the language model gave them, in its dtype, and are scaled where they arrive: half the traffic
where that is bfloat16, and the same bits.

Shapes: B tokens of a batch, D width of a site.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae_bench.device import send
from sae_bench.lm.sites import Site
from sae_bench.training.serving import Key, Scaling
from sae_bench.training.source import TextFacts


@dataclass(frozen=True)
class Opening:
    """What a training that begins needs: the scaling that was measured and, by what fetches them, `INIT_SAMPLE`
    activations of every site, not scaled."""

    scaling: Scaling
    samples: Mapping[Site, Any]

    def of(self, sites: Collection[Site]) -> "Opening":
        """That of some sites."""
        scale, mean = self.scaling.scale, self.scaling.mean
        scaling = Scaling({site: scale[site] for site in sites}, {site: mean[site] for site in sites})
        return Opening(scaling, {site: self.samples[site] for site in sites})


@dataclass(frozen=True)
class Cycle:
    """Where the buffer was when the cycle began that a batch is of, and what there was to say of the text."""

    state: Mapping[str, Any]
    facts: TextFacts

    @property
    def number(self) -> int:
        """The cycle's first batch."""
        return int(self.state["n_before"])

    def of(self, sites: Collection[Site]) -> "Cycle":
        """That of some sites: only they have rows in it."""
        names = {site.name for site in sites}
        carried = {key: x for key, x in self.state["carried"].items() if key.rpartition(" ")[0] in names}
        return Cycle({**self.state, "carried": carried}, self.facts)


@dataclass(frozen=True)
class Served:
    """A batch, not scaled, by what fetches it; its cycle, unless the reader knows it; and the opening with batch 0."""

    rows: Mapping[Key, Any]
    cycle: Cycle | None
    opening: Opening | None

    def to(self, keys: Sequence[Key], known: int | None) -> "Served":
        """What a reader of some keys needs of it, who knows the cycle `known`."""
        sites = dict.fromkeys(site for site, _ in keys)
        cycle = None if self.cycle is None or self.cycle.number == known else self.cycle.of(sites)
        return Served({key: self.rows[key] for key in keys}, cycle, self.opening and self.opening.of(sites))


def completed(state: Mapping[str, Any], keys: Collection[Key]) -> Mapping[str, Any] | None:
    """A reader's state of the buffer as one for all `keys`; None if it was made where a seed was not.

    What others carried over is not in it. That was of the cycle's first batch, which this reader had and everybody who
    is ahead of it: nobody is served it again. So it is not a number.
    """
    carried = state["carried"]
    if any(str(seed) not in state["orders"] for _, seed in keys):
        return None
    rows = next(iter(carried.values()))
    sites, seeds = {site for site, _ in keys}, {seed for _, seed in keys}
    of_all = {
        f"{site.name} {seed}": torch.full((len(rows), site.d_in), torch.nan, dtype=rows.dtype)
        for site in sites
        for seed in seeds
    }
    return {**state, "carried": {key: carried.get(key, rows) for key, rows in of_all.items()}}


def as_bytes(x: Float[Tensor, "B D"]) -> NDArray[np.uint8]:
    """A tensor of any dtype as numpy's: Ray lays arrays into shared memory as they are."""
    return x.detach().cpu().contiguous().view(torch.uint8).numpy()


def as_rows(x: NDArray[np.uint8], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "B D"]:
    """What `as_bytes` was given, copied out of shared memory."""
    return send(torch.from_numpy(x.copy()).view(dtype), device)
