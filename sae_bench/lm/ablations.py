"""What zero and mean ablation cost, worked out on one context for all of them.

An ablation puts the same vector at every counted position. Behind a site that carries the whole residual stream,
contexts then no longer differ: the same opening token, of which a causal model makes the same activation whatever
follows, then constants. So the ablated hidden states of one context are everybody's, and so are their normalisers over
the vocabulary, the expensive part. A prediction adds no more than the logit of its own target:

    CE(position, target) = log Z[position] - logit[position, target]

At mlp_out and attn_out the residual stream passes by the site and keeps contexts apart; a model may have other ways
round it. That is not read off the site's name but tried out: two contexts that have nothing but the opening in common
must end alike. Where they do not, and in a batch that holds another opening or a special token elsewhere, ablated
passes are run in full.

Shapes: n contexts, S tokens in each, D width of a site, c counted positions, m predictions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.device import send
from sae_bench.lm.losses import log_normaliser
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.replay import CleanPass
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import special_mask

ROUNDING = 100
"""Hidden states are the same if they differ by at most so many units of rounding, and by 1% in a coarse dtype."""


@dataclass(frozen=True)
class SharedEnd:
    """How every context ends under an ablation: final hidden states, and the logarithms of their normalisers."""

    hidden: Float[Tensor, "S d_model"]
    log_z: Float[Tensor, " S"]


class Ablations:
    """Cross-entropies with each site's activations at zero and at their mean, special positions left clean."""

    def __init__(self, lm: LanguageModel, means: Mapping[Site, Float[Tensor, " D"]]) -> None:
        self.lm = lm
        self._constants = {site: (torch.zeros_like(mean), mean) for site, mean in means.items()}
        words = torch.arange(lm.n_vocab)
        self._words = send(words[~special_mask(words, lm.special_ids)], lm.device)
        self._shared: dict[tuple[int, int], dict[Site, list[SharedEnd]]] = {}

    def losses(
        self,
        clean: CleanPass,
        counted: Int[Tensor, " c"],
        predicts: Int[Tensor, " m"],
        targets: Int[Tensor, " m"],
        opening: int | None,
    ) -> dict[Site, tuple[Float[Tensor, " m"], Float[Tensor, " m"]]]:
        """Return for each site the cross-entropies of the predictions with zero ablation, and with mean ablation.

        Positions are numbered through all contexts of the pass. `opening` is the token that stands at the beginning of
        every context, if all positions after it are counted; None if that is not so.
        """
        shared = {} if opening is None else self._shared_ends(opening, clean.tokens[0])
        position = predicts % clean.tokens.shape[1]

        def loss(site: Site, which: int) -> Tensor:
            if site in shared:
                end = shared[site][which]
                return end.log_z[position] - self.lm.logit_of(end.hidden[position], targets)
            hidden = _ablate(clean, site, counted, self._constants[site][which])[predicts]
            return log_normaliser(self.lm, hidden) - self.lm.logit_of(hidden, targets)

        return {site: (loss(site, 0), loss(site, 1)) for site in self._constants}

    def _shared_ends(self, opening: int, context: Int[Tensor, " S"]) -> dict[Site, list[SharedEnd]]:
        """For the sites behind which they are alike, the ends of all contexts as long as this one, and so opened."""
        key = opening, len(context)
        if key not in self._shared:
            self._shared[key] = self._find_shared_ends(context)
        return self._shared[key]

    def _find_shared_ends(self, context: Int[Tensor, " S"]) -> dict[Site, list[SharedEnd]]:
        """Ablate this context and one that shares nothing with it but the opening."""
        n_words = len(self._words)
        other = self._words[torch.searchsorted(self._words, context, right=True) % n_words]  # each token's next word
        other[0] = context[0]
        clean = self.lm.clean_pass(torch.stack([context, other]), self._constants, check=False)
        position = torch.arange(2 * len(context), device=context.device).view(2, -1)
        counted = position[:, 1:].flatten()
        found = {}
        for site, constants in self._constants.items():
            pairs = [_ablate(clean, site, counted, constant)[position] for constant in constants]
            if all(_alike(mine, others) for mine, others in pairs):
                found[site] = [SharedEnd(mine, log_normaliser(self.lm, mine)) for mine, _ in pairs]
        return found


def _ablate(
    clean: CleanPass, site: Site, counted: Int[Tensor, " c"], constant: Float[Tensor, " D"]
) -> Float[Tensor, "_ d_model"]:
    return clean.splice(site, counted, constant.expand(len(counted), -1))


def _alike(a: Float[Tensor, "S d_model"], b: Float[Tensor, "S d_model"]) -> bool:
    """Whether two contexts end in the same hidden states, up to rounding; this waits for the device."""
    tolerance = min(ROUNDING * torch.finfo(a.dtype).eps, 0.01)
    return bool(((a - b).norm(dim=1) <= tolerance * a.norm(dim=1)).all())
