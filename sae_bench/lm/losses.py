"""Next-token losses without logits: cross-entropy and KL, tile by tile through the vocabulary.

Logits of 262,144 words for a batch of tokens are larger than everything else together. Here each tile of the
vocabulary is computed for the clean model once and for every spliced one in turn, reduced while it is in cache, and
forgotten. What remains of a tile is its normaliser and one sum. With p and q the clean and the spliced distribution, P
and Q their masses in a tile, and p_t, q_t the distributions within it:

    log Z = logsumexp of the tiles' log Z_t            CE = log Z - logit of the target
    KL(p || q) = sum over tiles of P (KL(p_t || q_t) + log P - log Q),    log P = log Z_t - log Z

Within a tile there is nothing but log-softmax, which torch does in one go, and no logit is too large for it. Equal
hidden states give exactly equal cross-entropies and a KL of exactly 0. Tiles are float32, sums over tiles float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.lm.model import LanguageModel

TILE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
"""Size of a tile: on a CPU it stays in cache; on a GPU they fill it."""
WIDTH_STEP = 128
"""Tiles are as wide as a multiple of this: a matrix product of odd width is up to a fifth slower on a CPU."""
TOKENS_AT_ONCE = 1024
"""Enough rows for a matrix product at full speed: the head's weights are read once for that many tokens."""


@dataclass(frozen=True)
class TokenLosses:
    """Cross-entropy of each model's prediction, and its KL from the clean one's, in nats; one row per model."""

    ce_clean: Float[Tensor, " m"]
    ce: Float[Tensor, "models m"]
    kl: Float[Tensor, "models m"]


def token_losses(
    lm: LanguageModel,
    clean: Float[Tensor, "m d_model"],
    changed: Sequence[Float[Tensor, "m d_model"]],
    targets: Int[Tensor, " m"],
) -> TokenLosses:
    """Score the predictions from final hidden states, `clean` and `changed`, of the same m tokens."""
    models = (clean, *changed)
    n_parts = max(1, -(-len(targets) // TOKENS_AT_ONCE))
    parts = [
        _losses_of_some(lm, rows, words)
        for words, *rows in zip(*(x.tensor_split(n_parts) for x in (targets, *models)), strict=True)
    ]
    ce, kl = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
    return TokenLosses(ce[0], ce[1:], kl[1:])


def log_normaliser(lm: LanguageModel, hidden: Float[Tensor, "m d_model"]) -> Float[Tensor, " m"]:
    """log Z: logsumexp over the vocabulary for each final hidden state."""

    def of(rows: Tensor) -> Tensor:
        log_z = _log_of_nothing(len(rows), device=rows.device)
        for words in _tiles(lm, rows):
            log_z = log_z.logaddexp(_log_softmax(lm.logits(rows, words))[1])
        return log_z

    return torch.cat([of(rows) for rows in hidden.split(TOKENS_AT_ONCE)])


def _losses_of_some(lm: LanguageModel, models: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and KL, [models, m], of final hidden states; the first model is the clean one."""
    log_z = _log_of_nothing(len(models), len(targets), device=targets.device)
    kl = torch.zeros_like(log_z)  # the sum over the tiles so far, relative to their share of the mass
    for words in _tiles(lm, models[0]):
        p, normalisers, cross = None, [], []
        for hidden in models:
            log_q, normaliser = _log_softmax(lm.logits(hidden, words))
            p = log_q.exp() if p is None else p
            normalisers.append(normaliser)
            cross.append(log_q.mul_(p).sum(1))
        tile, within = torch.stack(normalisers).double(), cross[0] - torch.stack(cross)
        before, log_z = log_z, log_z.logaddexp(tile)
        kl = kl * (before[0] - log_z[0]).exp() + (tile[0] - log_z[0]).exp() * (within + tile[0] - tile)
    ce = log_z - torch.stack([lm.logit_of(hidden, targets) for hidden in models])
    return ce, kl - log_z[0] + log_z


def _log_of_nothing(*shape: int, device: torch.device) -> Tensor:
    """Where a sum over tiles starts: in float64, so that many tiles cost no digit."""
    return torch.full(shape, -torch.inf, dtype=torch.float64, device=device)


def _log_softmax(logits: Float[Tensor, "m v"]) -> tuple[Float[Tensor, "m v"], Float[Tensor, " m"]]:
    """log softmax, and the log normaliser that it took off: read at the largest logit, where it is most exact."""
    log_p = logits.log_softmax(1)
    return log_p, logits.amax(1) - log_p.amax(1)


def _tiles(lm: LanguageModel, hidden: Tensor) -> list[slice]:
    n_bytes = TILE_BYTES.get(hidden.device.type, TILE_BYTES["cuda"])
    width = n_bytes // (4 * max(1, len(hidden)))
    width = max(1, width - width % WIDTH_STEP if width > WIDTH_STEP else width)
    return [slice(start, min(start + width, lm.n_vocab)) for start in range(0, lm.n_vocab, width)]
