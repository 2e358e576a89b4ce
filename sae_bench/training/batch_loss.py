"""What is kept of a batch's loss, or of a micro-batch's, and how the losses of parts make that of the whole.

Shapes: B tokens of a batch, F = d_sae.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.saes.active import as_active
from sae_bench.saes.step import Loss


@dataclass(frozen=True)
class BatchLoss:
    """Neither a loss's graph nor its latents."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    x_hat: Float[Tensor, "B D"]
    counts: Float[Tensor, " F"]
    """On how many tokens each latent fired."""
    dense: bool
    minima: dict[str, Float[Tensor, ""]]

    @staticmethod
    @torch.no_grad()
    def of(loss: Loss) -> "BatchLoss":
        terms, minima = ({name: value.detach() for name, value in each.items()} for each in (loss.terms, loss.minima))
        f = as_active(loss.latents)
        return BatchLoss(loss.total.detach(), terms, loss.x_hat.detach(), f.count_per_latent()[0], f.is_dense, minima)

    @staticmethod
    def joined(parts: Sequence["BatchLoss"]) -> "BatchLoss":
        """The loss of a batch from its micro-batches', weighted by their tokens."""
        if len(parts) == 1:
            return parts[0]
        x_hat = torch.cat([part.x_hat for part in parts])
        shares = [len(part.x_hat) / len(x_hat) for part in parts]

        def mean(values: Sequence[Tensor]) -> Tensor:
            return torch.stack([value * share for value, share in zip(values, shares, strict=True)]).sum(0)

        return BatchLoss(
            mean([part.total for part in parts]),
            {name: mean([part.terms[name] for part in parts]) for name in parts[0].terms},
            x_hat,
            torch.stack([part.counts for part in parts]).sum(0),
            parts[0].dense,
            {name: torch.stack([part.minima[name] for part in parts]).amin() for name in parts[0].minima},
        )

    @property
    def seen(self) -> dict[str, Float[Tensor, ""]]:
        return self.terms | self.minima

    @property
    def l0(self) -> Float[Tensor, ""]:
        return self.counts.sum() / len(self.x_hat)
