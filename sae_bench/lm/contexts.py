"""Which positions of a batch count, and which predict; the mean activation over those that count.

A special token says nothing about text: it does not count, it is not predicted and does not predict. Everything that is
measured over tokens, in evaluation, in samples for interpretation and in calibration, looks at a batch this way. What
counts is read off the tokens before they go to the device, so that nothing in a batch waits for the device.

Shapes: n contexts in a batch, S tokens in each, c counted positions, m predictions. Positions are numbered through all
contexts of a batch, so that they index the rows of [n S, ...]; D width of a site.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.device import send
from sae_bench.lm.activations import ActivationModel, ContextStream
from sae_bench.lm.finite import check_finite
from sae_bench.lm.passes import run_pass
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import TokenBatch, special_mask
from sae_bench.progress import Progress


@dataclass(frozen=True)
class Contexts:
    """A batch on the device: which positions count, and which predict a counted token (a special one does neither)."""

    tokens: Int[Tensor, "n S"]
    counted: Int[Tensor, " c"]
    document: Int[Tensor, " c"]
    position: Int[Tensor, " c"]
    predicts: Int[Tensor, " m"]
    targets: Int[Tensor, " m"]
    target_document: Int[Tensor, " m"]
    frequency: Int[Tensor, " m"] | None
    """How often the words that are predicted occur, if somebody has counted."""
    opening: int | None
    """The token at the beginning of every context, if it alone does not count."""

    @staticmethod
    def of(
        batch: TokenBatch,
        special_ids: frozenset[int],
        device: torch.device,
        words: Int[Tensor, " V"] | None = None,
    ) -> "Contexts":
        """Look at a batch on the CPU and send it to the device; `words` says how often each word occurs."""
        tokens, document = batch.tokens, batch.document
        counts = ~special_mask(tokens, special_ids)
        predicts = torch.zeros_like(counts)
        predicts[:, :-1] = counts[:, :-1] & counts[:, 1:]
        counted, predicting = (mask.flatten().nonzero().squeeze(1) for mask in (counts, predicts))
        alone = bool(counts[:, 1:].all() and not counts[:, 0].any() and (tokens[:, 0] == tokens[0, 0]).all())
        targets = tokens.flatten()[predicting + 1]
        return Contexts(
            tokens=send(tokens, device),
            counted=send(counted, device),
            document=send(document.flatten()[counted], device),
            position=send(counted % tokens.shape[1], device),
            predicts=send(predicting, device),
            targets=send(targets, device),
            target_document=send(document.flatten()[predicting + 1], device),
            frequency=None if words is None else send(words[targets], device),
            opening=int(tokens[0, 0]) if alone else None,
        )


@torch.no_grad()
def site_means(
    lm: ActivationModel, stream: ContextStream, sites: Sequence[Site], size: int, progress: Progress
) -> dict[Site, Float[Tensor, " D"]]:
    """Mean activation of each site over all counted tokens of the stream, in float64.

    Raises UserError, at the end, where activations are not finite.
    """
    sums = {site: torch.zeros(site.d_in, dtype=torch.float64, device=lm.device) for site in sites}
    finite = {site: torch.ones((), dtype=torch.bool, device=lm.device) for site in sites}
    n_tokens = 0
    for batch in progress.track("site means", stream.batches(size), stream.n_contexts, lambda batch: len(batch.tokens)):
        contexts = Contexts.of(batch, lm.special_ids, lm.device)
        n_tokens += len(contexts.counted)
        for site, x in run_pass(lm, batch, sites, len(batch.tokens)).items():
            finite[site] &= torch.isfinite(x).all()
            sums[site] += x.flatten(0, 1)[contexts.counted].sum(0, dtype=torch.float64)
    for site in sites:
        check_finite(site, finite[site], lm.dtype)
    return {site: total / n_tokens for site, total in sums.items()}
