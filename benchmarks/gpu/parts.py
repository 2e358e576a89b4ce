"""Where the time of a step goes on a device: every part is put between two events in the device's queue.

A part's time is its own, without that of parts within it; what the device waits in between for the host counts, too.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

from gpu.report import Clock, wait
from sae_bench import SparseAutoencoder
from sae_bench.saes import active, screening
from sae_bench.training import trainer as trainer_module
from sae_bench.training.device_stats import DeviceStats

REST = "the rest"

PARTS: tuple[tuple[object, str, str], ...] = (
    (screening, "_bounded", "rounding and bound"),
    (screening, "_products", "screening product"),
    (screening, "_cut", "candidates"),
    (screening, "_reaching", "candidates"),
    (screening, "_settled", "exact values"),
    (active, "_selected", "encoder product and selection"),
    (SparseAutoencoder, "select_all", "selection, the rest"),
    (SparseAutoencoder, "decode", "decode"),
    (active._Decode, "backward", "decode, backward"),
    (active._Select, "backward", "selection, backward"),
    (trainer_module, "tidy", "norm of the gradient"),
    (trainer_module, "descend", "optimiser"),
    (DeviceStats, "usable", "statistics"),
    (DeviceStats, "note", "statistics"),
)
"""Who has it, its name, the part that it is; names that are gone are passed over. A generator is timed item by item."""


class PartTimer:
    """Times of parts that may lie within each other, by name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stack: list[int] = []
        self._spans: list[tuple[str, int | None, Clock, Clock | None]] = []

    def begin(self, part: str) -> None:
        self._stack.append(len(self._spans))
        outer = self._stack[-2] if len(self._stack) > 1 else None
        self._spans.append((part, outer, Clock(self._device), None))

    def end(self) -> None:
        i = self._stack.pop()
        part, outer, start, _ = self._spans[i]
        self._spans[i] = part, outer, start, Clock(self._device)

    def own_ms(self) -> dict[str, float]:
        """Of every part, without the parts within it; forgets them."""
        wait(self._device)
        own: dict[str, float] = defaultdict(float)
        for part, outer, start, end in self._spans:
            assert end is not None, f"{part} has not ended"
            taken = start.ms_until(end)
            own[part] += taken
            if outer is not None:
                own[self._spans[outer][0]] -= taken
        self._spans.clear()
        return own

    def wrapped(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, timed; of a generator, what happens between its items."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.begin(part)
            try:
                found = function(*arguments, **options)
            finally:
                self.end()
            return self._items(found, part) if isinstance(found, Iterator) else found

        return timed

    def _items(self, items: Iterator[Any], part: str) -> Iterator[Any]:
        while True:
            self.begin(part)
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.end()
            yield item


def timed_parts(step: Callable[[], None], device: torch.device, *, rounds: int, discard: int = 2) -> dict[str, float]:
    """Median milliseconds of every part of a step, and of the rest."""
    timer = PartTimer(device)
    with ExitStack() as patches:
        for owner, name, part in PARTS:
            if (function := getattr(owner, name, None)) is None:
                continue
            timed = timer.wrapped(function, part)
            is_static = isinstance(owner, type) and isinstance(vars(owner).get(name), staticmethod)
            patches.enter_context(patch.object(owner, name, staticmethod(timed) if is_static else timed))
        every: dict[str, list[float]] = defaultdict(list)
        for number in range(discard + rounds):
            timer.begin(REST)
            step()
            timer.end()
            found = timer.own_ms()
            if number >= discard:
                for part, ms in found.items():
                    every[part].append(ms)
    return {part: statistics.median(times) for part, times in every.items()}
