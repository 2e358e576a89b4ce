"""Samples of a world in contexts, as text comes in contexts of tokens: a token is a sample's number.

Training samples are numbered from 0 on, held-out ones from `HELD_OUT` on: no sample is of both sides. Those for tuning
are `TUNING` further on, on either side. Every context begins with a token that stands for no sample, as a text's does.

Shapes: n contexts, S = context_size tokens in each, the first included.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field

import torch

from sae_bench.errors import UserError
from sae_bench.lm.near_duplicates import Part, Split
from sae_bench.lm.shared_runs import SharedRuns
from sae_bench.lm.tokens import TokenBatch
from sae_bench.synthetic.settings import BLOCK

OPENING = -1
"""The token that every context begins with."""

HELD_OUT = 1 << 48
"""The number of the first held-out sample; so many are never trained on."""

TUNING = 1 << 47
"""How far into its side the part for tuning begins; no board goes so far."""

DOCUMENT = 64
"""Samples that errors take together. They are independent, so that any number of them serves."""


@dataclass(eq=False)
class SampleStream:
    """One side of a world's samples; a `ContextStream`.

    UserError: a context does not hold whole blocks of `BLOCK` samples, besides its first token.
    """

    source: str
    _: KW_ONLY
    split: Split
    context_size: int
    n_tokens: int
    skip_tokens: tuple[int, ...] = ()
    watch: SharedRuns | None = None
    part: Part | None = None
    passes: int = 1
    words: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if (self.context_size - 1) % BLOCK or self.context_size <= BLOCK:
            raise UserError(
                f"--context-size {self.context_size}: a synthetic world gives {BLOCK} samples at once: use "
                f"{BLOCK + 1}, or one more than another multiple of {BLOCK}"
            )
        self._restart()

    def _restart(self) -> None:
        self.n_delivered = self.n_documents = 0
        self.sizes: Counter[int] = Counter()
        self._digest = hashlib.sha256(f"{self.source} {self.context_size}".encode())

    @property
    def n_contexts(self) -> int:
        """Contexts in the whole stream."""
        return math.ceil(self.n_tokens / (self.context_size - 1))

    @property
    def fewest_documents(self) -> int:
        """Documents that the samples are from."""
        return self.n_contexts * (self.context_size - 1) // DOCUMENT

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the world and the numbers of the samples delivered so far."""
        return self._digest.hexdigest()

    def batches(self, batch_contexts: int, start_context: int = 0) -> Iterator[TokenBatch]:
        """Yield the contexts from `start_context` on; those before it are counted, as if they had been delivered."""
        self._restart()
        for at in range(start_context):
            self._deliver(at)
        for first in range(start_context, self.n_contexts, batch_contexts):
            numbers = [self._deliver(at) for at in range(first, min(first + batch_contexts, self.n_contexts))]
            tokens = torch.full((len(numbers), self.context_size), OPENING)
            tokens[:, 1:] = torch.tensor(numbers)[:, None] + torch.arange(self.context_size - 1)
            document = torch.full_like(tokens, -1)
            document[:, 1:] = (tokens[:, 1:] - self._first) // DOCUMENT
            yield TokenBatch(tokens, document)

    def read(self) -> None:
        """Count the whole stream; there are always samples enough."""
        self._restart()
        for at in range(self.n_contexts):
            self._deliver(at)

    def shared_runs(self) -> None:
        """No sample is of both sides."""

    @property
    def _first(self) -> int:
        """The number of the first sample, behind those that are passed over, in whole contexts."""
        passed = sum(math.ceil(n / (self.context_size - 1)) for n in self.skip_tokens) * (self.context_size - 1)
        part = TUNING if self.part == "tuning" else 0
        return (HELD_OUT if self.split == "eval" else 0) + part + passed

    def _deliver(self, at: int) -> int:
        """Count a context, and return the number of its first sample."""
        n_samples = self.context_size - 1
        first = self._first + at * n_samples
        self._digest.update(first.to_bytes(8, "little"))
        documents = range(at * n_samples // DOCUMENT, (at + 1) * n_samples // DOCUMENT)
        self.n_delivered += n_samples
        self.n_documents = documents.stop
        if self.split == "eval":
            self.sizes.update(dict.fromkeys(documents, DOCUMENT))
        return first
