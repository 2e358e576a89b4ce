"""Whether activations are those of their site, and finite; what to do where they are not."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_bench.errors import UserError
from sae_bench.lm.sites import Site


def remedy(dtype: torch.dtype) -> str:
    """What may make numbers in this dtype finite."""
    return "get the model again: its weights hold NaN or infinity" if dtype == torch.float32 else "try float32"


def check_activations(activations: Mapping[Site, Tensor], values: bool) -> None:
    """Raise UserError unless activations are as wide as their sites say and, if `values` are looked at, finite."""
    for site, x in activations.items():
        if (d := x.shape[-1]) != site.d_in:
            raise UserError(f"{site.name}: {site.path} is {d} wide, not {site.d_in}: is it another model's site?")
        if values:
            check_finite(site, torch.isfinite(x).all(), x.dtype)


def check_finite(site: Site, finite: Bool[Tensor, ""], dtype: torch.dtype) -> None:
    """Raise UserError unless `finite`, which says whether all activations at `site` are; this waits for the device."""
    if not finite:
        raise UserError(f"{site.name}: activations in {dtype} are not all finite: {remedy(dtype)}")
