"""A language model before whose passes a cache stands: it is loaded when something is asked that the cache has not.

What is in the cache is what the same pass gave before, so that nobody who asks sees a difference, to the last bit.
Passes of whole streams are kept (`passes.run_pass`); a clean pass, a replay and all else are the loaded model's.

Shapes: n contexts, S tokens in each, D width of a site.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_bench.activations_cache.store import PassStore
from sae_bench.device import send
from sae_bench.errors import UserError
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.passes import live_pass
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import TokenBatch

OF_THE_WEIGHTS = ("model", "backbone", "_replayable")
"""Attributes of a `LanguageModel` that there are once it is loaded."""


class CachedModel(LanguageModel):
    """The language model that `load` loads, if need be, whose outline `shape` is, built of fake tensors in `mode`.

    `known` are the hashes of its weights and its buffers, None where they are to be loaded for it. `cached_as` is what
    records say.

    Raises UserError, at the moment of loading, for all that `load` raises it for, and for other weights than known.
    """

    def __init__(
        self,
        shape: LanguageModel,
        mode: FakeTensorMode,
        load: Callable[[], LanguageModel],
        store: PassStore,
        known: tuple[str, str] | None,
        **about: Any,
    ) -> None:
        self.__dict__.update({name: value for name, value in vars(shape).items() if name not in OF_THE_WEIGHTS})
        self.__dict__.update(about)
        self._shape, self._mode, self._load, self.store = shape, mode, load, store
        self._weight_hash: str | None = known[0] if known else None
        self._buffer_hash: str | None = known[1] if known else None
        self._loaded: LanguageModel | None = None
        self.n_read = self.n_captured = 0
        """Contexts that were read, and captured, at one site after the other."""

    def __getattr__(self, name: str) -> Any:
        # Only what is not there is looked up here.
        if name not in OF_THE_WEIGHTS:
            raise AttributeError(name)
        return getattr(self.loaded(), name)

    @property
    def cached_as(self) -> str:
        """What records say of where the activations were kept."""
        return f"cache {self.store.capture[:12]}"

    def loaded(self) -> LanguageModel:
        """The language model itself, none of whose passes is kept."""
        if self._loaded is None:
            loaded, known = self._load(), self._weight_hash
            if known is not None and loaded.weight_hash() != known:
                raise UserError(
                    f'model "{self.name}" has other weights than when {self.store.folder} was begun ({known[:8]} -> '
                    f"{loaded.weight_hash()[:8]}): delete that folder, or choose another --activations-cache"
                )
            self._loaded = loaded
        return self._loaded

    @property
    def n_bytes(self) -> int:
        """Of the weights once they are loaded."""
        return self._shape.n_bytes

    def weight_hash(self) -> str:
        return self._weight_hash or self.loaded().weight_hash()

    def buffer_hash(self) -> str:
        return self._buffer_hash or self.loaded().buffer_hash()

    def find_sites(self, kinds: Sequence[str], layers: Sequence[int]) -> list[Site]:
        """As the loaded model finds them; without it, sites that the cache has."""
        if self._loaded is None:
            with self._mode:
                found = self._shape.find_sites(kinds, layers)
            if self.store.sites.issuperset(found):
                return found
        return self.loaded().find_sites(kinds, layers)

    def told(self) -> str:
        """What the cache was good for since this was last asked, in words; nothing where nobody asked it."""
        n_read, n_captured = self.n_read, self.n_captured
        self.n_read = self.n_captured = 0
        told = f"activations cache: {n_read:,} contexts read, {n_captured:,} captured (at one site after the other)"
        return told if n_read or n_captured else ""

    def kept_pass(self, batch: TokenBatch, sites: Sequence[Site], of: int) -> dict[Site, Float[Tensor, "n S D"]]:
        """What `passes.run_pass` asks for: read, or captured and kept."""
        found = {site: self.store.find(site, batch.tokens, of) for site in sites}
        missing = [site for site, x in found.items() if x is None]
        self.n_read += len(batch.tokens) * (len(sites) - len(missing))
        self.n_captured += len(batch.tokens) * len(missing)
        new = live_pass(self.loaded(), batch, missing, of) if missing else {}
        if new:
            self.store.add(batch, of, new)
        read = {site: send(x, self.device) for site, x in found.items() if x is not None}
        return {site: new[site] if site in new else read[site] for site in sites}
