"""Next-token losses without logits: cross-entropy and KL, tile by tile through the vocabulary.

Logits of 262,144 words for a batch of tokens are larger than everything else together. Here each tile of the
vocabulary is computed for the clean model once and for every spliced one in turn, reduced while it is in cache, and
forgotten. What remains of a tile is its normaliser and one sum. With p and q the clean and the spliced distribution, P
and Q their masses in a tile, and p_t, q_t the distributions within it:

    log Z = logsumexp of the tiles' log Z_t            CE = log Z - logit of the target
    KL(p || q) = sum over tiles of P (KL(p_t || q_t) + log P - log Q),    log P = log Z_t - log Z

Within a tile there is nothing but log-softmax, which torch does in one go, and no logit is too large for it. Equal
hidden states give exactly equal cross-entropies and a KL of exactly 0. Tiles are float32, sums over tiles float64.

Where losses are asked for in bfloat16 (`LanguageModel.bfloat16_losses`) the spliced models' tiles are made of the
clean one's, which is float32, and of what the splice changed, h_q - h_p, times the head in bfloat16. So rounding is in
proportion to the change, and nothing where nothing changed. Words that hold more than `LIKELY` of either distribution,
on whose logits alone a loss depends by much, are multiplied in float32. What is left of rounding is measured against
float32 on a sample of every batch: models whose mean error may be above `MAX_ERROR` are done again in float32. Two
standard errors are a statement about most batches, not about each: errors of single tokens have long tails.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sae_bench.lm.model import LanguageModel

TILE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
"""Size of a tile: on a CPU it stays in cache; on a GPU they fill it."""
WIDTH_STEP = 128
"""Tiles are as wide as a multiple of this: a matrix product of odd width is up to a fifth slower on a CPU."""
TOKENS_AT_ONCE = 1024
"""Enough rows for a matrix product at full speed: the head's weights are read once for that many tokens."""
LIKELY = 3e-5
"""Probability from which on a word's logit is a float32 product."""
MAX_ERROR = 1e-4
"""What bfloat16 may change a batch's mean losses by, at two standard errors: nats, for each nat of KL beyond one."""
SAMPLE, SAMPLE_SHARE = 64, 32
"""Predictions of a batch to measure that error on: so many at least, or one in so many."""


@dataclass(frozen=True)
class TokenLosses:
    """Cross-entropy of each model's prediction, and its KL from the clean one's, in nats; one row per model.

    `rounding` is what bfloat16 added to both at the s predictions where it was measured: none where all is float32.
    """

    ce_clean: Float[Tensor, " m"]
    ce: Float[Tensor, "models m"]
    kl: Float[Tensor, "models m"]
    rounding: Float[Tensor, "2 models s"]


def token_losses(
    lm: LanguageModel,
    clean: Float[Tensor, "m d_model"],
    changed: Sequence[Float[Tensor, "m d_model"]],
    targets: Int[Tensor, " m"],
) -> TokenLosses:
    """Score the predictions from final hidden states, `clean` and `changed`, of the same m tokens."""
    if not lm.bfloat16_losses or not changed or not len(targets):
        ce, kl = _losses(lm, (clean, *changed), targets, _float32)
        return TokenLosses(ce[0], ce[1:], kl[1:], ce.new_empty(2, len(changed), 0))
    losses = torch.stack(_losses(lm, (clean, *changed), targets, _coarse))
    sampled = torch.arange(0, len(targets), max(1, len(targets) // max(SAMPLE, len(targets) // SAMPLE_SHARE)))

    def in_float32(models: Sequence[Tensor], at: Tensor | slice) -> Tensor:
        return torch.stack(_losses(lm, [hidden[at] for hidden in (clean, *models)], targets[at], _float32))[:, 1:]

    rounding = losses[:, 1:, sampled] - in_float32(changed, sampled)
    allowed = MAX_ERROR * losses[1, 1:].mean(1).clamp(min=1)
    again = (error_bound(rounding) > allowed).any(0).nonzero().squeeze(1).tolist()
    if again:
        losses[:, [1 + i for i in again]] = in_float32([changed[i] for i in again], slice(None))
        rounding[:, again] = 0
    return TokenLosses(losses[0, 0], losses[0, 1:], losses[1, 1:], rounding)


def error_bound(errors: Float[Tensor, "*models s"]) -> Float[Tensor, "*models"]:
    """How far from 0 the mean of such errors may be: that of the sample, and two standard errors of it."""
    standard_error: Tensor = errors.std(-1, correction=0) / errors.shape[-1] ** 0.5
    return errors.mean(-1).abs() + 2 * standard_error


def log_normaliser(lm: LanguageModel, hidden: Float[Tensor, "m d_model"]) -> Float[Tensor, " m"]:
    """log Z: logsumexp over the vocabulary for each final hidden state."""

    def of(rows: Tensor) -> Tensor:
        log_z = _log_of_nothing(len(rows), device=rows.device)
        for words in _tiles(lm, rows):
            log_z = log_z.logaddexp(_log_softmax(lm.logits(rows, words))[1])
        return log_z

    return torch.cat([of(rows) for rows in hidden.split(TOKENS_AT_ONCE)])


TileLogits = Callable[[slice, Tensor], Iterator[Tensor]]
"""Each model's logits of some words, the clean one's first; its second argument, [models, m], is at most log Z."""
Precision = Callable[[LanguageModel, Sequence[Tensor]], TileLogits]


def _losses(
    lm: LanguageModel, models: Sequence[Tensor], targets: Tensor, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and KL, [models, m], of final hidden states; the first model is the clean one."""
    n_parts = max(1, -(-len(targets) // TOKENS_AT_ONCE))
    parts = [
        _losses_of_some(lm, rows, words, precision)
        for words, *rows in zip(*(x.tensor_split(n_parts) for x in (targets, *models)), strict=True)
    ]
    ce, kl = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
    return ce, kl


def _losses_of_some(
    lm: LanguageModel, models: Sequence[Tensor], targets: Tensor, precision: Precision
) -> tuple[Tensor, Tensor]:
    of_target = torch.stack([lm.logit_of(hidden, targets) for hidden in models])
    log_z = _log_of_nothing(len(models), len(targets), device=targets.device)
    tile_logits = precision(lm, models)
    kl = torch.zeros_like(log_z)  # the sum over the tiles so far, relative to their share of the mass
    for words in _tiles(lm, models[0]):
        p, normalisers, cross = None, [], []
        for logits in tile_logits(words, log_z.maximum(of_target)):
            log_q, normaliser = _log_softmax(logits)
            p = log_q.exp() if p is None else p
            normalisers.append(normaliser)
            cross.append(log_q.mul_(p).sum(1))
        tile, within = torch.stack(normalisers).double(), cross[0] - torch.stack(cross)
        before, log_z = log_z, log_z.logaddexp(tile)
        kl = kl * (before[0] - log_z[0]).exp() + (tile[0] - log_z[0]).exp() * (within + tile[0] - tile)
    return log_z - of_target, kl - log_z[0] + log_z


def _float32(lm: LanguageModel, models: Sequence[Tensor]) -> TileLogits:
    return lambda words, _: (lm.logits(hidden, words) for hidden in models)


def _coarse(lm: LanguageModel, models: Sequence[Tensor]) -> TileLogits:
    """The clean model's logits in float32, the others' by what they change; likely words in float32 in both."""
    clean, *changed = models
    changes = [(hidden - clean, (hidden - clean).bfloat16()) for hidden in changed]

    def logits_of(words: slice, log_z: Tensor) -> Iterator[Tensor]:
        least = (log_z + math.log(LIKELY)).float()
        uncapped, weight = lm.logits(clean, words, capped=False), lm.head_weight[words]
        logits = lm.cap(uncapped.clone()) if lm.soft_cap else uncapped
        coarse_weight = weight.bfloat16().T
        likely = _above(logits, least[0])
        yield logits
        for (change, coarse_change), least_here in zip(changes, least[1:], strict=True):
            logits = lm.cap(uncapped + coarse_change @ coarse_weight)
            for pairs in (likely, _above(logits, least_here)):
                exact = uncapped[pairs.row, pairs.word] + pairs.products(change, weight)
                logits[pairs.row, pairs.word] = lm.cap(exact)
            yield logits

    return logits_of


@dataclass(frozen=True)
class _Pairs:
    """Some (token, word) pairs of a tile, in order."""

    row: Int[Tensor, " n"]
    word: Int[Tensor, " n"]
    size: torch.Size

    def products(self, x: Float[Tensor, "m d_model"], weight: Float[Tensor, "v d_model"]) -> Float[Tensor, " n"]:
        """x[row] . weight[word]; rows are read where they lie."""
        start = functional.pad(torch.bincount(self.row, minlength=self.size[0]).cumsum(0), (1, 0))
        zeros = x.new_zeros(len(self.word))
        with warnings.catch_warnings():  # torch announces once per process that its CSR support is in beta
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
            pattern = torch.sparse_csr_tensor(start, self.word, zeros, self.size, check_invariants=False)
        product: Tensor = torch.sparse.sampled_addmm(pattern, x, weight.T, beta=0)
        return product.values()


def _above(logits: Float[Tensor, "m v"], least: Float[Tensor, " m"]) -> _Pairs:
    """The pairs whose logit is above the row's `least`; most rows of a tile have none."""
    rows = (logits.amax(1) > least).nonzero().squeeze(1)
    of_rows, word = (logits[rows] > least[rows, None]).nonzero(as_tuple=True)
    return _Pairs(rows[of_rows], word, logits.shape)


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
