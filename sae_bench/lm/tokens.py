"""Corpora in, packed token contexts out.

    documents (shuffled by a seed) -> train or eval (by content) -> tokens -> [BOS t t t ...] [BOS t t t ...] ...

Three decisions matter to every number measured downstream. A document belongs to one side by its
content (`near_duplicates`), so no seed, order or repetition can leak evaluation text into training; what other texts
repeat of it is counted (`shared_runs`). Each context holds exactly one
special token, the BOS in front, so "special positions are not counted" costs the same share everywhere. And the
stream keeps a running hash of what it delivered: two runs with the same fingerprint saw the same tokens.

Letters: n contexts, S = context_size tokens in each, the BOS included.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_bench.errors import UserError
from sae_bench.lm.corpus import documents, repeated
from sae_bench.lm.long_documents import IdArray, batches_of, encoded_parts
from sae_bench.lm.near_duplicates import Part, Split, cluster_of, digest, is_of, split_of
from sae_bench.lm.shared_runs import SharedRuns

__all__ = ["Split", "TokenBatch", "TokenStream", "documents", "opening_id", "special_ids", "special_mask", "split_of"]

log = logging.getLogger(__name__)

EVAL_CONTEXTS = 2
"""Contexts' worth of tokens taken of an evaluation document at most: errors are by document, so many must share the
tokens, and a few long ones would have most of them."""

FEW = 10
"""Fewer documents than these are too few to hold any out."""

SEPARATOR = "\n\n"  # ends every document, so that none runs into the next
TOKENIZER_BATCH = 256  # documents at once: enough to keep a fast tokenizer's threads busy


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that stand for no text: BOS, EOS, PAD and every other token flagged as special."""
    flagged = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset(tokenizer.all_special_ids).union(flagged)


def special_mask(tokens: Int[Tensor, "*shape"], special_ids: frozenset[int]) -> Bool[Tensor, "*shape"]:
    """Return, in the shape of `tokens`, where a special id stands. Ids are compared: 0 is as good a BOS as any."""
    return torch.isin(tokens, torch.tensor(sorted(special_ids), dtype=tokens.dtype, device=tokens.device))


def opening_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that opens every context: BOS, or EOS for models trained to begin with that (Qwen, GPT-2).

    UserError when the tokenizer has neither.
    """
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise UserError(
        f'the tokenizer "{tokenizer.name_or_path}" has no BOS and no EOS token to open a context with; '
        "choose another model, or set bos_token in its tokenizer_config.json"
    )


@dataclass(frozen=True)
class TokenBatch:
    """Some contexts. `document` says which of the stream's documents a token is from, -1 at the BOS.

    On the evaluation side it is a number of a cluster: texts that repeat each other are one document.
    """

    tokens: Int[Tensor, "n S"]
    document: Int[Tensor, "n S"]


@dataclass(eq=False)
class TokenStream:
    """One side of a corpus as packed contexts, the same ones whenever it is iterated.

    `n_tokens` counts tokens of text, BOS excluded; whole contexts are delivered, so the last may overshoot. The
    documents that hold the first `skip_tokens` are passed over: a stream of n tokens and one that skips n share none.
    Several numbers are skipped one after the other: a stream of n tokens that skips m, and one that skips (m, n).
    The state of the iteration under way, or of the last one, is in `n_delivered` (tokens of text), `n_documents`
    (documents they are from), `sizes` (tokens of each, on the evaluation side), `words` (how often each id occurs, on
    the evaluation side), `passes` (times the corpus was begun) and `fingerprint`.
    `watch`, if there is one, has seen all that was delivered, contexts that a resumed iteration passes over included.

    UserError: `context_size` is below 2 or above `max_context`, the model's limit, or there is no token to open with.
    """

    source: str
    tokenizer: PreTrainedTokenizerBase
    _: KW_ONLY
    split: Split
    context_size: int
    n_tokens: int
    order_seed: int
    column: str = "text"
    max_context: int | None = None
    skip_tokens: int | tuple[int, ...] = 0
    flag: str = "--eval-tokens"
    watch: SharedRuns | None = None
    part: Part | None = None

    def __post_init__(self) -> None:
        if self.context_size < 2:
            raise UserError(f"context size {self.context_size} leaves no room for text after the BOS; use at least 2")
        if self.max_context is not None and self.context_size > self.max_context:
            raise UserError(
                f"context size {self.context_size} exceeds the model's limit; use at most {self.max_context}"
            )
        self.skips = (self.skip_tokens,) if isinstance(self.skip_tokens, int) else self.skip_tokens
        self.bos_id = opening_id(self.tokenizer)
        self._warned = False
        self._restart()

    @property
    def n_contexts(self) -> int:
        """Contexts in the whole stream: ceil(n_tokens / (context_size - 1))."""
        return math.ceil(self.n_tokens / (self.context_size - 1))

    @property
    def fewest_documents(self) -> int:
        """Documents that an evaluation stream takes its tokens from at least: none gives more than EVAL_CONTEXTS."""
        return math.ceil(self.n_contexts / EVAL_CONTEXTS)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the contexts delivered so far, BOS included, as little-endian int64."""
        return self._digest.hexdigest()

    def batches(self, batch_contexts: int, start_context: int = 0) -> Iterator[TokenBatch]:
        """Yield the contexts from `start_context` on, `batch_contexts` at a time; the last batch may be smaller.

        Contexts before `start_context` are made and counted but not yielded: a resumed run ends with the same
        fingerprint and counts as an uninterrupted one. A training stream that reaches the end of its corpus begins it
        again in another order; an evaluation stream raises UserError, since a repeated text is no new evidence.
        """
        contexts = islice(self._contexts(), start_context, None)
        while rows := list(islice(contexts, batch_contexts)):
            tokens, document = torch.from_numpy(np.stack(rows, axis=1))
            yield TokenBatch(tokens, document)

    def shared_runs(self) -> SharedRuns:
        """What counts the text that this stream has in common with another, which is to `watch` with it."""
        return SharedRuns(context[:, 1:] for context in self._contexts())

    def read(self) -> None:
        """Go through the whole stream once: UserError if the corpus is too small, and every count is final."""
        for _ in self._contexts():
            pass

    def _restart(self) -> None:
        self.n_delivered = self.n_documents = self.passes = 0
        self._clusters: dict[int, int] = {}
        self.sizes: Counter[int] = Counter()
        self.words: Counter[int] = Counter()
        self._digest = hashlib.sha256()
        if self.watch:
            self.watch.restart()

    def _contexts(self) -> Iterator[IdArray]:
        """Yield one context at a time as [2, S]: token ids above, documents' numbers below."""
        self._restart()
        opening = np.array([self.bos_id, -1])
        text_size = self.context_size - 1
        pieces = self._pieces()
        for n_skipped in filter(None, self.skips):
            pieces = self._after_skip(pieces, n_skipped)
        waiting = np.empty((3, 0), dtype=np.int64)
        for _ in range(self.n_contexts):
            while waiting.shape[1] < text_size:
                waiting = np.concatenate([waiting, next(pieces)], axis=1)
            text, waiting = waiting[:, :text_size], waiting[:, text_size:]
            document = self._clustered(text[2]) if self.split == "eval" else text[1]
            context = np.column_stack([opening, np.stack([text[0], document])])
            self._digest.update(context[0].astype("<i8").tobytes())
            self.n_delivered += text_size
            self.n_documents = max(self.n_documents, int(document.max()) + 1)
            if self.split == "eval":
                self.words.update(text[0].tolist())
            if self.watch:
                self.watch.see(context[:, 1:])
            yield context

    def _clustered(self, clusters: IdArray) -> IdArray:
        """The numbers of the clusters that a context's tokens are from, given in the order of their appearance."""
        found, first, which = np.unique(clusters, return_index=True, return_inverse=True)
        for cluster in found[np.argsort(first)]:
            self._clusters.setdefault(int(cluster), len(self._clusters))
        numbers = np.array([self._clusters[int(cluster)] for cluster in found])[which]
        self.sizes.update(numbers.tolist())
        return numbers

    def _pieces(self) -> Iterator[IdArray]:
        """Yield the text as [3, m] arrays, without BOS and without end: token ids, documents' ordinals, clusters.

        Training text has no clusters: 0.
        """
        n_documents = 0
        special = sorted(special_ids(self.tokenizer))
        while True:
            n_tokens = 0
            texts = self._texts(self.passes)
            self.passes += 1
            for batch in batches_of(texts, TOKENIZER_BATCH):
                ordinals = np.arange(n_documents, n_documents + len(batch))
                clusters = [cluster_of(text) if self.split == "eval" else 0 for text in batch]
                of_documents = np.stack([ordinals, clusters])
                ended = [text + SEPARATOR for text in batch]
                for encoded in encoded_parts(self.tokenizer, ended, whole=self.split == "eval"):
                    if self.split == "eval":
                        encoded = [self._window(text, ids) for text, ids in zip(batch, encoded, strict=True)]
                    of_tokens = np.repeat(of_documents, [len(ids) for ids in encoded], axis=1)
                    # A text may spell out "<bos>", and the tokenizer takes it at its word.
                    piece = np.vstack([np.concatenate(encoded), of_tokens])
                    piece = piece[:, ~np.isin(piece[0], special)]
                    n_tokens += piece.shape[1]
                    yield piece
                n_documents += len(batch)
            self._end_of_corpus(n_tokens)

    def _window(self, text: str, ids: IdArray) -> IdArray:
        """At most EVAL_CONTEXTS contexts' worth of a document, from a place that its hash decides."""
        size = EVAL_CONTEXTS * (self.context_size - 1)
        start = digest(text) % max(1, len(ids) - size + 1)
        return ids[start : start + size]

    def _after_skip(self, pieces: Iterator[IdArray], n_skipped: int) -> Iterator[IdArray]:
        """The pieces from the first document on that begins after `n_skipped` tokens, which is then number 0."""
        left, first = n_skipped + self.context_size - 1, 0
        for piece in pieces:
            n = min(left, piece.shape[1])
            if n:
                left, first = left - n, int(piece[1, n - 1]) + 1
            if piece.shape[1] and piece[1, -1] >= first:
                yield piece[:, piece[1] >= first] - np.array([[0], [first], [0]])

    def _texts(self, n_pass: int) -> Iterator[str]:
        # Mixed, not added: pass 1 of seed 0 must not be pass 0 of seed 1.
        seed = int(np.random.SeedSequence([self.order_seed, n_pass]).generate_state(1)[0])
        texts = documents(self.source, order_seed=seed, column=self.column)
        return self._readable(self._of_side(texts))

    def _of_side(self, texts: Iterator[str]) -> Iterator[str]:
        own = (text for text in texts if is_of(text, self.split, self.part))
        if self.split == "train":
            return own
        left_out = repeated(self.source, self.column)
        return (text for text in own if digest(text) not in left_out)

    def _readable(self, texts: Iterator[str]) -> Iterator[str]:
        """The texts; whatever goes wrong in reading them, a lost connection or a damaged file, is a UserError."""
        try:
            yield from texts
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f'the corpus "{self.source}" cannot be read any further ({type(error).__name__}: {error}): '
                "mend it, and the same command goes on"
            ) from error

    def _end_of_corpus(self, n_tokens: int) -> None:
        """Allow another pass over the `n_tokens` just read, or raise UserError."""
        if self.split == "eval":
            n_tokens = max(0, n_tokens - sum(self.skips))
            n_whole = n_tokens // (self.context_size - 1) * (self.context_size - 1)
            remedy = f"use {self.flag} {n_whole} or less" if n_whole else "choose a larger corpus"
            n_documents = sum(1 for _ in islice(documents(self.source, order_seed=0, column=self.column), FEW))
            if n_documents < FEW:
                remedy += f"; it has {n_documents} documents, and of documents one in ten is held out: cut them up"
            raise UserError(
                f'the corpus "{self.source}" holds {n_tokens} evaluation tokens, fewer than the {self.n_tokens} asked '
                f"for in contexts of {self.context_size}; {remedy}"
            )
        if n_tokens == 0:
            raise UserError(f'the corpus "{self.source}" has no text to train on; choose a larger one')
        if not self._warned:
            self._warned = True
            log.warning(
                'the corpus "%s" holds %d unique training tokens, fewer than the %d asked for: it is read again',
                self.source,
                n_tokens,
                self.n_tokens,
            )
