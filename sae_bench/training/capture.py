"""Activations captured from what gives them, pass by pass, and written where they are wanted.

Activations are numbered from the beginning of the stream's tokens. A pass has the same contexts wherever a capture
begins, and as many wherever it ends, so that it gives the same bits. On a CUDA device the model has a stream of its
own.

Shapes: P positions of a pass, n of them counted, D width of a site.
"""

import time
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_bench.device import SideStream, halved, send
from sae_bench.lm.activations import ActivationModel, ContextStream
from sae_bench.lm.finite import check_finite
from sae_bench.lm.passes import run_pass
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import TokenBatch, special_mask

CAPTURE_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""Tokens in one forward pass: enough to fill the device."""


def contexts_in_a_pass(context_size: int, device: torch.device) -> int:
    """How many contexts fill the device."""
    return max(1, CAPTURE_TOKENS.get(device.type, CAPTURE_TOKENS["cuda"]) // context_size)


class Capture:
    """The activations at some sites from number `row` on, up to the stream's number of tokens.

    The buffer's `side` stream does the work. `n_captured` is the number of the next activation.
    """

    def __init__(
        self,
        lm: ActivationModel,
        tokens: ContextStream,
        sites: Sequence[Site],
        side: SideStream,
        row: int,
        contexts_per_pass: int,
    ) -> None:
        self.lm, self.tokens, self.sites, self.contexts_per_pass = lm, tokens, sites, contexts_per_pass
        of_text = tokens.context_size - 1  # every context has one special token, the first
        start = row // of_text // contexts_per_pass * contexts_per_pass
        self.n_captured = start * of_text
        self._side, self._row = side, row
        self.seconds = 0.0
        """That passes took, as the host sees it: on a CUDA device, which it does not wait for, next to nothing."""
        self._batches = tokens.batches(contexts_per_pass, start)
        self._at_once: int | None = None  # contexts in a pass, where memory was too small for all
        self._finite: dict[Site, Bool[Tensor, ""]] = {}  # whether all is that was captured since it was last asked
        # What one pass captured, and the counted positions that are not written yet.
        self._pending: tuple[dict[Site, Float[Tensor, "P D"]], Int[Tensor, " n"]] | None = None

    def ready(self) -> bool:
        """Whether there are activations to write; this runs the next pass if nothing is left of the last."""
        if self._pending is None and (batch := next(self._batches, None)) is not None:
            self._pending = self._run(batch)
        return self._pending is not None

    def write(self, rows: Mapping[Site, Float[Tensor, "N D"]], at: int, n: int) -> int:
        """Write up to `n` activations of the last pass into `rows` from row `at` on; return how many there were."""
        assert self._pending is not None, "nothing is ready"
        activations, counted = self._pending
        n = min(n, len(counted))
        with self._side.work():
            for site, x in activations.items():
                torch.index_select(x, 0, counted[:n], out=rows[site][at : at + n])
        self._pending = (activations, counted[n:]) if n < len(counted) else None
        return n

    def check_finite(self) -> None:
        """Raise UserError unless all that was captured is finite: where a half is full, the host waits for the side."""
        with self._side.work():
            for site, finite in self._finite.items():
                check_finite(site, finite, self.lm.dtype)
        self._finite = {}

    def _run(self, batch: TokenBatch) -> tuple[dict[Site, Float[Tensor, "P D"]], Int[Tensor, " n"]]:
        # Which positions count is read off the tokens on the CPU: the device need not be asked how many there are.
        positions = (~special_mask(batch.tokens, self.lm.special_ids)).flatten().nonzero().squeeze(1)
        n_left = self.tokens.n_tokens - self.n_captured
        counted = positions[max(0, self._row - self.n_captured) : n_left]
        self.n_captured += len(positions[:n_left])
        started = time.perf_counter()
        with self._side.work():
            activations = self._activations(batch)
            self.seconds += time.perf_counter() - started
            for site, x in activations.items():
                self._finite[site] = torch.isfinite(x).all() & self._finite.get(site, True)
            rows = {site: x.flatten(0, 1).to(self.lm.dtype) for site, x in activations.items()}
            return rows, send(counted, self.lm.device)

    def _activations(self, batch: TokenBatch) -> dict[Site, Tensor]:
        """One pass, or several where memory does not suffice."""
        while True:
            size = self._at_once or self.contexts_per_pass
            parts = zip(batch.tokens.split(size), batch.document.split(size), strict=True)
            try:
                passes = [run_pass(self.lm, TokenBatch(*part), self.sites, size) for part in parts]
                return {site: torch.cat([of_pass[site] for of_pass in passes]) for site in self.sites}
            except torch.OutOfMemoryError:
                self._at_once = halved(size, "contexts in a pass that captures activations")
