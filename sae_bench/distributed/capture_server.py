"""One capture for many trainers: a buffer whose batches wait, in a bounded window, until the slowest reader had them.

A reader is a trainer's end of it. It asks for batches by their number; to ask for one is to have done with those before
it. The buffer runs ahead of the slowest reader by the window and no more, so what is held is bounded, and fast readers
wait for slow ones. A reader that is silent while others wait for it is given up after a while; when it comes back, or
comes anew from an earlier checkpoint, the buffer goes back with it and serves the same batches again, while those who
are ahead wait.

The server keeps nothing that must outlive it. Readers are given the buffer's state with the first batch that they get
of every cycle, and bring it when they connect; a server that starts anew goes on from the state of whoever is last.

Nothing here knows of Ray: `put` is whatever makes of an array what readers can fetch it by.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sae_bench.distributed.capture_messages import Cycle, Opening, Served, as_bytes, completed
from sae_bench.training.buffer import ActivationBuffer
from sae_bench.training.initial_values import INIT_SAMPLE
from sae_bench.training.serving import Key, Scaling
from sae_bench.training.source import TextFacts

PATIENCE_S = 60.0
"""How long others wait for a reader that is silent. To give one up too early costs time, and no bit."""

MOST_PATIENCE_S = 600.0
"""The same where readers that were given up came back, and so may just be slow: it doubles with each, up to this."""


class NotConnectedError(Exception):
    """The server does not know where this reader is: it started anew, or has given the reader up."""


@runtime_checkable
class OpenBuffer(Protocol):
    """Opens the buffer, at the beginning or at a state. It may be slow: it is not called before a reader has come."""

    def __call__(
        self, *, scaling: Scaling | None = None, state: Mapping[str, Any] | None = None
    ) -> ActivationBuffer: ...


@dataclass
class _Place:
    """Where a reader is."""

    keys: Sequence[Key]
    at: int | None = None
    """The batch that it needs next; None while it is not connected."""
    state: Mapping[str, Any] | None = None
    """The buffer's, as the reader brought it when it connected."""
    awaited: bool = True
    """Whether others wait for it."""
    heard: float = field(default_factory=time.monotonic)
    asking: int = 0
    """Questions that have no answer yet: who asks is not silent."""


class CaptureServer:
    """Serves every reader, by name, the batches of its keys; `window` is how many batches are held at most."""

    def __init__(
        self,
        open_buffer: OpenBuffer,
        readers: Mapping[str, Sequence[Key]],
        put: Callable[[NDArray[np.uint8]], Any],
        *,
        window: int,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._open, self._put, self._size, self._patience = open_buffer, put, window, patience_s
        self._keys = list(dict.fromkeys(key for keys in readers.values() for key in keys))
        self._places = {name: _Place(keys) for name, keys in readers.items()}
        self._window: deque[Served] = deque()
        self._start = 0  # the number of the window's first batch
        self._astray = True  # whether a reader needs the buffer to begin elsewhere
        self._end: TextFacts | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="capture", daemon=True).start()

    def connect(self, reader: str, n_done: int, state: Mapping[str, Any] | None) -> None:
        """A reader comes, or comes back: it had `n_done` batches, the last of them in the cycle that `state` is of.

        Where the buffer could not go on, it tries again.
        """
        with self._changed:
            place = self._places[reader]
            if not place.awaited:
                self._patience = max(self._patience, min(2 * self._patience, MOST_PATIENCE_S))
            place.at, place.state, place.awaited, place.heard = n_done, state, True, time.monotonic()
            self._astray |= n_done < self._start or self._error is not None
            self._error = None
            self._changed.notify_all()

    def batch(self, reader: str, number: int, known: int | None) -> Served:
        """Batch `number`, when it is there; `known` is the cycle that the reader knows.

        Raises:
            NotConnectedError: the reader must connect, with where it is.
            UserError: the buffer cannot go on; so does whatever else kept it.
        """
        with self._changed, self._question(reader, number) as place:
            self._wait(place, lambda: number < self._start + len(self._window))
            if number < self._start:
                raise NotConnectedError(reader)
            return self._window[number - self._start].to(place.keys, known)

    def end(self, reader: str, n_steps: int) -> TextFacts:
        """What there is to say of the whole text, when all of it was captured; raises as `batch` does."""
        with self._changed, self._question(reader, n_steps) as place:
            self._wait(place, lambda: self._end is not None)
            assert self._end is not None
            return self._end

    def leave(self, reader: str) -> None:
        """A reader needs nothing any more, or is not to be waited for; it may come back."""
        with self._changed:
            self._leave(self._places[reader])
            self._trim()

    @contextmanager
    def _question(self, reader: str, at: int) -> Iterator[_Place]:
        """While it lasts the reader is not silent."""
        place = self._places[reader]
        if place.at is None:
            raise NotConnectedError(reader)
        place.at = at
        place.asking += 1
        self._trim()
        try:
            yield place
        finally:
            place.asking -= 1
            place.heard = time.monotonic()

    def _wait(self, place: _Place, ready: Callable[[], bool]) -> None:
        while self._error is None and (self._astray or not ready()):
            self._changed.wait()
        if self._error is not None:
            raise self._error
        if place.at is None:
            raise NotConnectedError

    def _trim(self) -> None:
        """Drop what every reader had that is awaited; one that is not connected may need anything."""
        least = min((place.at or 0 for place in self._places.values() if place.awaited), default=self._start)
        while self._window and self._start < least:
            self._window.popleft()
            self._start += 1
        self._changed.notify_all()

    def _wait_for_readers(self) -> None:
        """Wait a while for what readers do; give up those who keep others waiting and were not heard of for long."""
        self._changed.wait(self._patience / 4)
        now = time.monotonic()
        if not any(place.asking for place in self._places.values()):
            return
        for place in self._places.values():
            silent = not place.asking and now - place.heard > self._patience
            if silent and place.awaited and (place.at is None or place.at <= self._start):
                self._leave(place)
        self._trim()

    @staticmethod
    def _leave(place: _Place) -> None:
        place.at, place.awaited = None, False

    def _work(self) -> None:
        """Capture, from wherever readers need it."""
        while True:
            begin, state = self._beginning()
            try:
                self._serve(begin, state)
            except BaseException as error:  # noqa: BLE001 (whatever it is, the readers are told)
                with self._changed:
                    self._error = error
                    self._changed.notify_all()

    def _beginning(self) -> tuple[int, Mapping[str, Any] | None]:
        """Where the last of the readers is, when all have connected that are awaited."""
        with self._changed:
            while True:
                places = [place for place in self._places.values() if place.awaited]
                if self._astray and places and all(place.at is not None for place in places):
                    break
                self._wait_for_readers()
            last = min(places, key=lambda place: place.at or 0)
            self._window.clear()
            self._start, self._end, self._astray = last.at or 0, None, False
            return self._start, last.state

    def _serve(self, begin: int, state: Mapping[str, Any] | None) -> None:
        """Fill the window from batch `begin` on, until a reader needs an earlier one; `state` may be of before."""
        state = state and completed(state, self._keys)
        # Readers scale; for those who have a scaling none need be measured.
        buffer = self._open(scaling=Scaling({}, {}) if state else None, state=state)
        opening = self._opening(buffer) if begin == 0 else None
        cycle: Cycle | None = None
        rows = buffer.unscaled()
        for number in range(state["n_done"] if state else 0, buffer.n_steps):
            if not self._has_room():
                return
            batch = next(rows)
            if number < begin:
                continue  # the state was of before
            now = buffer.state_dict(number + 1)
            if cycle is None or cycle.number != now["n_before"]:
                carried = {key: x.cpu() for key, x in now["carried"].items()}
                cycle = Cycle({**now, "carried": carried}, buffer.facts())
            served = Served({key: self._put(as_bytes(batch[key])) for key in self._keys}, cycle, opening)
            opening = None
            with self._changed:
                self._window.append(served)
                self._trim()
        next(rows, None)  # what is left of the last cycle makes no batch
        with self._changed:
            self._end = buffer.facts()
            self._changed.notify_all()

    def _opening(self, buffer: ActivationBuffer) -> Opening:
        sites = dict.fromkeys(site for site, _ in self._keys)
        scaling = Scaling(buffer.scale, {site: mean.cpu() for site, mean in buffer.mean.items()})
        samples = {site: self._put(as_bytes(buffer.unscaled_sample(site, INIT_SAMPLE))) for site in sites}
        return Opening(scaling, samples)

    def _has_room(self) -> bool:
        """Wait until the window has room; False if the buffer is to begin elsewhere."""
        with self._changed:
            while len(self._window) >= self._size and not self._astray:
                self._wait_for_readers()
            return not self._astray
