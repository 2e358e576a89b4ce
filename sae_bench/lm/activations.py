"""What gives activations, and the contexts that it gives them for: a language model, or what stands in its place.

Training and evaluation ask no more of it than this. What else a language model can do, to go on from a site and to
predict, they ask of a `LanguageModel` alone: `no_language_model` says why there is none.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NotRequired, Protocol, TypedDict, Unpack, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.lm.fingerprint import Identity
from sae_bench.lm.near_duplicates import Part, Split
from sae_bench.lm.shared_runs import SharedRuns
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import TokenBatch


class StreamOptions(TypedDict):
    """Which side of a source, and how much of it: fields of `TokenStream`."""

    split: Split
    context_size: int
    n_tokens: int
    order_seed: int
    column: str
    skip_tokens: tuple[int, ...]
    flag: str
    part: NotRequired[Part | None]


@runtime_checkable
class ContextStream(Protocol):
    """Contexts of tokens, the same ones whenever it is iterated; `TokenStream` says what each name means."""

    source: str
    context_size: int
    n_tokens: int
    n_delivered: int
    n_documents: int
    passes: int
    sizes: Counter[int]
    words: Counter[int]
    """Empty where tokens are no words."""
    watch: SharedRuns | None

    @property
    def n_contexts(self) -> int: ...

    @property
    def fewest_documents(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def batches(self, batch_contexts: int, start_context: int = 0) -> Iterator[TokenBatch]: ...

    def read(self) -> None: ...

    def shared_runs(self) -> SharedRuns | None:
        """None where no text can be shared."""


@runtime_checkable
class KnownFeatures(Protocol):
    """What else an `ActivationModel` has whose activations are made of known features.

    Shapes: N features, D width, c counted positions.
    """

    @property
    def features(self) -> Float[Tensor, "N D"]:
        """Their directions, unit rows."""

    @property
    def bias(self) -> Float[Tensor, " D"]:
        """What is added to the sum of the features."""

    def truth(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "c N"]:
        """How much of each feature is in the activations at the positions that count; 0 where it does not fire."""


@runtime_checkable
class ActivationModel(Protocol):
    """What activations come from; `LanguageModel` says what each name means."""

    name: str
    revision: str | None
    device: torch.device
    dtype: torch.dtype
    n_layers: int
    """1 where there are none."""
    d_model: int
    special_ids: frozenset[int]
    no_language_model: str | None
    """Why nothing is predicted and no text is read, as the end of a sentence; None for a language model."""

    @property
    def precision(self) -> str: ...

    @property
    def n_bytes(self) -> int: ...

    def weight_hash(self) -> str: ...

    def identity(self) -> Identity: ...

    def tokenizer_hash(self) -> str | None:
        """None where there is no tokenizer."""

    def token_flops(self, context_size: int) -> float: ...

    def find_sites(self, kinds: Sequence[str], layers: Sequence[int]) -> list[Site]: ...

    def stream(self, source: str, **options: Unpack[StreamOptions]) -> ContextStream: ...

    def capture(
        self, tokens: Int[Tensor, "batch seq"], sites: Iterable[Site], *, check: bool = True
    ) -> dict[Site, Tensor]: ...
