"""Next-token losses without logits: cross-entropy and KL, tile by tile through the vocabulary.

Logits of 262,144 words for a batch of tokens are larger than everything else together. Here each tile of the
vocabulary is computed for the clean model once and for every spliced one in turn, reduced while it is in cache, and
forgotten. With l the clean and s the spliced logits, Z = logsumexp(l) and a tile's Z_tile = logsumexp(l over the tile):

    CE = logsumexp(s) - s[target]
    KL = sum_v p_v (l_v - s_v) - logsumexp(l) + logsumexp(s),  p_v = exp(l_v - Z) = exp(l_v - Z_tile) exp(Z_tile - Z)

so both need from each tile only its logsumexp and its part of the sum. Equal logits give exactly equal cross-entropies
and a KL of exactly 0. Everything is float32; log(softmax), which underflows to -inf, occurs nowhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Logits = Callable[[Float[Tensor, "m d_model"], slice], Float[Tensor, "m v"]]
"""Final hidden states and a slice of the vocabulary -> float32 logits, soft-capping included."""

TILE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
TOKENS_AT_ONCE = 512
"""Enough rows for a matrix product at full speed: the head's weights are read once for that many tokens."""


@dataclass(frozen=True)
class TokenLosses:
    """Cross-entropy of each model's prediction, and its KL from the clean one's, in nats; one row per model."""

    ce_clean: Float[Tensor, "m"]
    ce: Float[Tensor, "models m"]
    kl: Float[Tensor, "models m"]


def token_losses(
    logits: Logits,
    n_vocab: int,
    clean: Float[Tensor, "m d_model"],
    changed: Sequence[Float[Tensor, "m d_model"]],
    targets: Int[Tensor, "m"],
) -> TokenLosses:
    """Score the predictions from final hidden states, `clean` and `changed`, of the same m tokens."""
    parts = [
        _losses_of_some(logits, n_vocab, clean[rows], [hidden[rows] for hidden in changed], targets[rows])
        for rows in _slices(len(targets), TOKENS_AT_ONCE)
    ]
    return TokenLosses(
        torch.cat([part.ce_clean for part in parts]),
        torch.cat([part.ce for part in parts], dim=1),
        torch.cat([part.kl for part in parts], dim=1),
    )


def _losses_of_some(
    logits: Logits, n_vocab: int, clean: Tensor, changed: Sequence[Tensor], targets: Tensor
) -> TokenLosses:
    width = max(1, TILE_BYTES.get(clean.device.type, TILE_BYTES["cuda"]) // (4 * max(1, len(clean))))
    models = [clean, *changed]
    log_z, target_logit, gap = [], torch.zeros(len(models), len(clean), device=clean.device), []
    for words in _slices(n_vocab, width):
        here = (targets >= words.start) & (targets < words.stop)
        column = (targets - words.start).clamp(0, words.stop - words.start - 1)[:, None]
        own = logits(clean, words)
        tile_log_z = [own.logsumexp(1)]
        target_logit[0] += torch.where(here, own.gather(1, column)[:, 0], 0.0)
        p = (own - tile_log_z[0][:, None]).exp_()
        tile_gap = []
        for i, hidden in enumerate(changed, start=1):
            s = logits(hidden, words)
            tile_log_z.append(s.logsumexp(1))
            target_logit[i] += torch.where(here, s.gather(1, column)[:, 0], 0.0)
            tile_gap.append(torch.linalg.vecdot(p, torch.sub(own, s, out=s)))
        log_z.append(torch.stack(tile_log_z))
        gap.append(torch.stack(tile_gap) if tile_gap else own.new_zeros(0, len(own)))
    tiles = torch.stack(log_z)  # [tiles, models, m]
    total = tiles.logsumexp(0)
    weight = (tiles[:, :1] - total[:1]).exp()
    kl = (weight * torch.stack(gap)).sum(0) - total[:1] + total[1:]
    ce = total - target_logit
    return TokenLosses(ce[0], ce[1:], kl)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, max(1, length), size)]
