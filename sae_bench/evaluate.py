"""The one evaluation pass: held-out tokens through the language model once, every SAE and every task fed from it.

First a pass to the deepest site alone gives each site's mean activation, which FVE and mean ablation need. Then, batch
by batch: one clean pass, two ablated ones per site, and for each SAE a replay of the layers after its site; losses come
from the final hidden states tile by tile through the vocabulary. The same tokens serve every SAE and every metric.

Shapes: n contexts in a batch, S tokens in each, D width of a site.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_bench.data import TokenStream, special_mask
from sae_bench.lm import CleanPass, LanguageModel
from sae_bench.lm_loss import token_losses
from sae_bench.progress import Progress
from sae_bench.sae import Latents, SparseAutoencoder
from sae_bench.sites import Site
from sae_bench.task import EvalBatch, EvalSetting, LMLosses, Result, Task

HIDDEN_BYTES = 512 << 20
"""Bound on the final hidden states held at once for all SAEs; it decides how many contexts make a batch."""

MAX_CONTEXTS = 16


@dataclass
class Candidate:
    """An SAE under evaluation: it takes raw activations at its site; one task instance per task."""

    sae: SparseAutoencoder
    site: Site
    tasks: Mapping[str, Task]
    results: dict[str, Result] = field(default_factory=dict)


@torch.no_grad()
def evaluate(lm: LanguageModel, stream: TokenStream, candidates: Sequence[Candidate], progress: Progress) -> None:
    """Run every task of every candidate over the stream's contexts and fill in their `results`."""
    sites = list(dict.fromkeys(candidate.site for candidate in candidates))
    with_losses = any(task.needs_lm_loss for candidate in candidates for task in candidate.tasks.values())
    size = contexts_per_batch(lm, stream.context_size, len(candidates) + 2 * len(sites))
    means = site_means(lm, stream, sites, size, progress)
    for candidate in candidates:
        setting = EvalSetting(candidate.sae, means[candidate.site], stream.n_documents, lm.device)
        for task in candidate.tasks.values():
            task.start(setting)

    for batch in progress.track("evaluate", stream.batches(size), stream.n_contexts, lambda batch: len(batch.tokens)):
        tokens, document = batch.tokens.to(lm.device), batch.document.to(lm.device)
        counted = ~special_mask(tokens, lm.special_ids)
        clean = lm.clean_pass(tokens, sites) if with_losses else None
        activations = clean.activations if clean else lm.capture(tokens, sites)
        replies = [_reply(candidate, activations[candidate.site][counted]) for candidate in candidates]
        losses = _losses(clean, candidates, replies, means, counted, document) if clean else [None] * len(replies)
        for candidate, (x, f, x_hat), loss in zip(candidates, replies, losses, strict=True):
            view = EvalBatch(x, f, x_hat, document[counted], loss)
            for task in candidate.tasks.values():
                task.update(view)

    for candidate in candidates:
        candidate.results = {name: task.finish() for name, task in candidate.tasks.items()}


def _reply(candidate: Candidate, x: Float[Tensor, "n D"]) -> tuple[Tensor, Latents, Tensor]:
    x = x.float()
    f = candidate.sae.encode(x)
    return x, f, candidate.sae.decode(f)


def _losses(
    clean: CleanPass,
    candidates: Sequence[Candidate],
    replies: Sequence[tuple[Tensor, Latents, Tensor]],
    means: Mapping[Site, Tensor],
    counted: Bool[Tensor, "n S"],
    document: Int[Tensor, "n S"],
) -> list[LMLosses | None]:
    """Losses of every candidate on the tokens predicted from a counted position (a special token predicts nothing)."""
    predicts = counted[:, :-1] & counted[:, 1:]
    targets, of_target = clean.tokens[:, 1:][predicts], document[:, 1:][predicts]

    def hidden_with(site: Site, x_new: Tensor) -> Float[Tensor, "m d_model"]:
        """Final hidden states with the site's activations replaced, special positions kept clean."""
        x = clean.activations[site].clone()
        x[counted] = x_new.to(x.dtype)
        return clean.replay(site, x)[:, :-1][predicts]

    sites = list(means)
    zero = [hidden_with(site, torch.zeros_like(means[site])) for site in sites]
    mean = [hidden_with(site, means[site]) for site in sites]
    spliced = [hidden_with(candidate.site, x_hat) for candidate, (_, _, x_hat) in zip(candidates, replies, strict=True)]
    scored = token_losses(
        clean.lm.logits, clean.lm.n_vocab, clean.hidden[:, :-1][predicts], [*zero, *mean, *spliced], targets
    )
    ce_zero, ce_mean, ce = scored.ce.split([len(sites), len(sites), len(spliced)])
    kl = scored.kl[2 * len(sites) :]
    return [
        LMLosses(of_target, scored.ce_clean, ce[i], ce_zero[at], ce_mean[at], kl[i])
        for i, at in enumerate(sites.index(candidate.site) for candidate in candidates)
    ]


@torch.no_grad()
def site_means(
    lm: LanguageModel, stream: TokenStream, sites: Sequence[Site], size: int, progress: Progress
) -> dict[Site, Float[Tensor, "D"]]:
    """Mean activation of each site over all counted tokens of the stream, in float64."""
    sums = {site: torch.zeros(site.d_in, dtype=torch.float64, device=lm.device) for site in sites}
    n_tokens = 0
    for batch in progress.track("site means", stream.batches(size), stream.n_contexts, lambda batch: len(batch.tokens)):
        tokens = batch.tokens.to(lm.device)
        counted = ~special_mask(tokens, lm.special_ids)
        n_tokens += int(counted.sum())
        for site, x in lm.capture(tokens, sites).items():
            sums[site] += x[counted].double().sum(0)
    return {site: total / n_tokens for site, total in sums.items()}


def contexts_per_batch(lm: LanguageModel, context_size: int, n_models: int) -> int:
    """Contexts whose final hidden states, for all models at once, stay within HIDDEN_BYTES."""
    return max(1, min(MAX_CONTEXTS, HIDDEN_BYTES // (4 * lm.d_model * context_size * (n_models + 1))))
