"""What training asks of its activations, wherever they are captured: in this process, or for several at once elsewhere.

Shapes: D width of a site.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sae_bench.lm.sites import Site
from sae_bench.training.serving import Batch, Scaling, Serving


class TextFacts(NamedTuple):
    """What an SAE's record says of the text it was trained on; `eval_overlap`: see `shared_runs`."""

    activations_captured: int
    fingerprint: str
    passes_over_corpus: int
    eval_overlap: float | None


@runtime_checkable
class ActivationSource(Protocol):
    """Shuffled, scaled activations at some sites, the same ones from every source; `ActivationBuffer` says what each
    method does."""

    @property
    def scaling(self) -> Scaling: ...

    @property
    def n_left(self) -> int: ...

    def sample(self, site: Site, n: int) -> Float[Tensor, "n D"]: ...

    def batches(self) -> Iterator[Batch]: ...

    def state_dict(self, n_done: int) -> dict[str, Any]: ...

    def facts(self) -> TextFacts: ...


@runtime_checkable
class OpenSource(Protocol):
    """Opens a source at the beginning of what `serving` says, with a scaling that is known or is to be measured, or
    where the `state_dict` of any source of the same activations was taken."""

    def __call__(
        self,
        sites: Sequence[Site],
        serving: Serving,
        *,
        scaling: Scaling | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> ActivationSource: ...
