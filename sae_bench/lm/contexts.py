"""Which positions of a batch count, and which predict.

A special token says nothing about text: it does not count, it is not predicted and does not predict. Everything that is
measured over tokens, in evaluation, in samples for interpretation and in calibration, looks at a batch this way. What
counts is read off the tokens before they go to the device, so that nothing in a batch waits for the device.

Shapes: n contexts in a batch, S tokens in each, c counted positions, m predictions. Positions are numbered through all
contexts of a batch, so that they index the rows of [n S, ...].
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sae_bench.device import send
from sae_bench.lm.tokens import TokenBatch, special_mask


@dataclass(frozen=True)
class Contexts:
    """A batch on the device: which positions count, and which predict a counted token (a special one does neither)."""

    tokens: Int[Tensor, "n S"]
    counted: Int[Tensor, " c"]
    document: Int[Tensor, " c"]
    predicts: Int[Tensor, " m"]
    targets: Int[Tensor, " m"]
    target_document: Int[Tensor, " m"]
    opening: int | None
    """The token at the beginning of every context, if it alone does not count."""

    @staticmethod
    def of(batch: TokenBatch, special_ids: frozenset[int], device: torch.device) -> "Contexts":
        """Look at a batch on the CPU and send it to the device."""
        tokens, document = batch.tokens, batch.document
        counts = ~special_mask(tokens, special_ids)
        predicts = torch.zeros_like(counts)
        predicts[:, :-1] = counts[:, :-1] & counts[:, 1:]
        counted, predicting = (mask.flatten().nonzero().squeeze(1) for mask in (counts, predicts))
        alone = bool(counts[:, 1:].all() and not counts[:, 0].any() and (tokens[:, 0] == tokens[0, 0]).all())
        return Contexts(
            tokens=send(tokens, device),
            counted=send(counted, device),
            document=send(document.flatten()[counted], device),
            predicts=send(predicting, device),
            targets=send(tokens.flatten()[predicting + 1], device),
            target_document=send(document.flatten()[predicting + 1], device),
            opening=int(tokens[0, 0]) if alone else None,
        )
