"""A pass over some contexts of a stream: what trains and evaluates asks for activations here.

Shapes: n contexts, S tokens in each, D width of a site.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.device import send
from sae_bench.lm.activations import ActivationModel
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import TokenBatch


@runtime_checkable
class KeepsPasses(Protocol):
    """A model that need not run a pass which was run before."""

    def kept_pass(self, batch: TokenBatch, sites: Sequence[Site], of: int) -> dict[Site, Float[Tensor, "n S D"]]: ...


def run_pass(lm: ActivationModel, batch: TokenBatch, sites: Sequence[Site], of: int) -> dict[Site, Tensor]:
    """The activations of a batch's contexts, [n S D] each, in a pass of `of` contexts. They are not looked at.

    A batch of fewer, as a stream's last one is, is filled up for the pass: how a product is rounded may depend on its
    size, and so no context's activations depend on where the stream ends.
    """
    if isinstance(lm, KeepsPasses):
        return lm.kept_pass(batch, sites, of)
    return live_pass(lm, batch, sites, of)


def live_pass(lm: ActivationModel, batch: TokenBatch, sites: Sequence[Site], of: int) -> dict[Site, Tensor]:
    """The same, run by the model itself."""
    n = len(batch.tokens)
    filled = batch.tokens
    if n < of:
        filled = torch.cat([filled, filled[:1].expand(of - n, -1)])
    return {site: x[:n] for site, x in lm.capture(send(filled, lm.device), sites, check=False).items()}
