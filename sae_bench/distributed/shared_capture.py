"""A shared capture on Ray: the actor that captures, and the reader that trains on what it serves.

Batches lie in Ray's object store, once for all readers of a site and seed, and nodes fetch those that they need.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from jaxtyping import Float
from ray.exceptions import ActorDiedError, GetTimeoutError, ObjectLostError, RayActorError, RayTaskError
from torch import Tensor

from sae_bench.distributed.capture_messages import Opening, Served, as_rows
from sae_bench.distributed.capture_server import PATIENCE_S, CaptureServer, NotConnectedError, OpenBuffer
from sae_bench.lm.activations import ActivationModel
from sae_bench.lm.sites import Site
from sae_bench.training.initial_values import INIT_SAMPLE
from sae_bench.training.serving import Batch, Key, Scaling, Serving
from sae_bench.training.source import TextFacts

T = TypeVar("T")

WINDOW = (2, 8)
"""Batches that are held at most: as many as fit into `WINDOW_BYTES`, but not fewer or more than these."""

WINDOW_BYTES = 2 << 30

AGAIN_S = 0.5
"""Seconds between two attempts to reach an actor that begins anew."""

LOST_S = 120.0
"""Seconds after which an actor that cannot be reached is lost: no node may be left that has room for it."""


class CaptureLostError(Exception):
    """The capture cannot be reached: whoever reads from it goes on, from its last checkpoint, without it."""


def window_size(keys: Sequence[Key], batch_size: int) -> int:
    """How many batches of some keys a capture holds."""
    n_bytes = 4 * batch_size * sum(site.d_in for site, _ in keys)  # at most: in a shorter dtype it is half
    return max(WINDOW[0], min(WINDOW[1], WINDOW_BYTES // n_bytes))


class CaptureActor(CaptureServer):
    """A server in an actor of its own."""

    def __init__(
        self, open_buffer: OpenBuffer, readers: Mapping[str, Sequence[Key]], window: int, patience_s: float
    ) -> None:
        super().__init__(open_buffer, readers, ray.put, window=window, patience_s=patience_s)


def start_capture(
    open_buffer: OpenBuffer,
    readers: Mapping[str, Sequence[Key]],
    *,
    window: int,
    patience_s: float = PATIENCE_S,
    **options: Any,
) -> Any:
    """An actor that captures for some readers, by name; Ray begins it anew where it is lost.

    `options` are Ray's: what it takes of a node, and its name on the dashboard.
    """
    # A reader may have a question that waits, besides those that it left when it was lost.
    options = {"max_restarts": -1, "max_concurrency": 4 * len(readers) + 8} | options
    return ray.remote(CaptureActor).options(**options).remote(open_buffer, readers, window, patience_s)


class SharedSource:
    """An `ActivationSource` whose batches come from an actor of `start_capture`, where this reader is called `name`.

    `n_tokens` are those of the stream; all else is as for `ActivationBuffer`.

    Raises UserError, as `batches` does, where the capture cannot go on.
    """

    def __init__(
        self,
        capture: Any,
        name: str,
        lm: ActivationModel,
        n_tokens: int,
        sites: Sequence[Site],
        serving: Serving,
        *,
        scaling: Scaling | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._capture, self._name, self._lm = capture, name, lm
        self.n_steps = serving.n_steps(n_tokens)
        """Batches in all, those before a checkpoint included."""
        self._n_done: int = state["n_done"] if state else 0
        self._state = state
        self._facts: TextFacts | None = None
        self._connected = False
        self._ahead: Any = None  # the question for the next batch, asked before that one is needed
        if state is not None:
            scaling = Scaling.of_state(state, sites, lm.device)
        if scaling is None:
            measured = self._answer(self._opening).scaling
            scaling = Scaling(measured.scale, {site: mean.to(lm.device) for site, mean in measured.mean.items()})
        self.scaling = scaling

    @property
    def n_left(self) -> int:
        return self.n_steps - self._n_done

    def sample(self, site: Site, n: int) -> Float[Tensor, "n D"]:
        assert n == INIT_SAMPLE, "the server has put that many aside"
        rows = self._answer(lambda: ray.get(self._opening().samples[site]))
        return as_rows(rows, self._lm.dtype, self._lm.device).float() / self.scaling.scale[site]

    def state_dict(self, n_done: int) -> dict[str, Any]:
        assert self._state is not None, "no batch was served"
        return {**self._state, "n_done": n_done, **self.scaling.state_dict()}

    def facts(self) -> TextFacts:
        """Those of the whole text after the last batch; before that, of the text when the cycle began."""
        assert self._facts is not None, "no batch was served"
        return self._facts

    def batches(self) -> Iterator[Batch]:
        try:
            while self._n_done < self.n_steps:
                rows = self._answer(self._next)
                self._n_done += 1
                if self._n_done < self.n_steps:
                    self._ahead = self._ask(self._n_done)
                yield self.scaling.applied(rows)
            self._facts = self._answer(lambda: ray.get(self._capture.end.remote(self._name, self.n_steps)))
        finally:
            self._capture.leave.remote(self._name)

    def _next(self) -> dict[Key, Float[Tensor, "B D"]]:
        """The rows of the next batch, fetched."""
        served = self._served(self._n_done)
        rows = ray.get(list(served.rows.values()))
        self._note(served)  # not before: should the rows be lost, the capture goes back to where this reader is
        return {key: as_rows(x, self._lm.dtype, self._lm.device) for key, x in zip(served.rows, rows, strict=True)}

    def _note(self, served: Served) -> None:
        """Keep what came with a batch; of a cycle that is known from a checkpoint, that state is whole."""
        if served.cycle is not None:
            self._facts = served.cycle.facts
            if self._state is None or self._state["n_before"] != served.cycle.number:
                self._state = served.cycle.state

    def _served(self, number: int) -> Served:
        asked, self._ahead = self._ahead, None
        served: Served = ray.get(asked or self._ask(number))
        return served

    def _ask(self, number: int) -> Any:
        known = self._state["n_before"] if self._state and self._facts else None
        return self._capture.batch.remote(self._name, number, known)

    def _opening(self) -> Opening:
        """What the capture gives to a training that begins."""
        served = self._served(0)
        self._note(served)
        assert served.opening is not None, "batch 0 has it"
        return served.opening

    def _answer(self, question: Callable[[], T]) -> T:
        """The answer, however often the capture begins anew meanwhile or has lost sight of this reader."""
        since = time.monotonic()
        while time.monotonic() - since < LOST_S:
            try:
                if not self._connected:
                    self._ahead = None
                    state = self.state_dict(self._n_done) if self._n_done else None
                    ray.get(self._capture.connect.remote(self._name, self._n_done, state), timeout=LOST_S)
                    self._connected, since = True, time.monotonic()
                return question()
            except RayTaskError as error:
                if not isinstance(error.cause, NotConnectedError):
                    raise error.cause from error
            except (ActorDiedError, GetTimeoutError) as error:  # for good, or no node has room for it
                raise CaptureLostError(str(error)) from error
            except (RayActorError, ObjectLostError):
                time.sleep(AGAIN_S)
            self._connected = False
        raise CaptureLostError(f"the capture did not answer for {LOST_S:g} s")
