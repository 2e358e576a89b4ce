"""One stream of activations for every SAE of a run: captured once, shuffled in bounded memory, scaled by one scalar.

The buffer has two halves. A cycle refills one half from the language model and serves activations drawn at random from
both, so every activation lives for two cycles, and is served exactly `reuse` times in all. Memory is the buffer's and
nothing grows with the number of tokens. Each seed draws in an order of its own from the same buffer; all SAEs of a seed
see the same batches.

With `overlap`, training does not stand still while a half is refilled: the next activations are staged in a third half
meanwhile. Before each batch of a cycle the model is given its fair share of the passes, on a stream of its own, so that
the staged half is full when the cycle ends; then the halves change roles. The batches are the same, bit for bit.

Shapes: B tokens of a batch, N tokens in the buffer, P positions of a pass, n of them counted, D width of a site.
"""

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from sae_bench.data import TokenBatch, TokenStream, special_mask
from sae_bench.device import SideStream, has_room, send
from sae_bench.lm import LanguageModel, check_finite
from sae_bench.progress import Progress
from sae_bench.sites import Site

CAPTURE_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""Tokens in one forward pass: enough to fill the device."""

Key = tuple[Site, int]
"""A site and a seed."""

Batch = dict[Key, Float[Tensor, "B D"]]
"""Scaled float32 activations by site and seed."""

Draws = dict[int, Int[Tensor, "draws"]]
"""Rows of the buffer by seed, in random order."""

Pass = tuple[dict[Site, Float[Tensor, "P D"]], Int[Tensor, "n"]]
"""What one pass of the model captured, and the counted positions that are not in the buffer yet."""


def half_size(n_tokens: int, buffer_tokens: int) -> int:
    """Tokens in one half of the buffer."""
    return min(math.ceil(buffer_tokens / 2), n_tokens)


def buffer_size(n_tokens: int, buffer_tokens: int, *, overlap: bool) -> int:
    """Tokens in the whole buffer: two halves, three with `overlap`, and none that a short stream never reaches."""
    half = half_size(n_tokens, buffer_tokens)
    return half * min(2 + overlap, math.ceil(n_tokens / half))


def buffer_bytes(
    sites: Collection[Site], dtype: torch.dtype, n_tokens: int, buffer_tokens: int, *, overlap: bool
) -> int:
    """Memory that the buffer takes on the language model's device, in the language model's dtype."""
    size = buffer_size(n_tokens, buffer_tokens, overlap=overlap)
    return size * sum(site.d_in for site in sites) * dtype.itemsize


class ActivationStream:
    """Shuffled, scaled activations at some sites of a language model.

    After `start` it knows, per site, `scale` - the scalar C with E||x / C||^2 = 1 - and `mean` (of x / C), measured on
    the first filling of the buffer, whose documents come in random order.

    With `overlap` it captures while training goes on. None leaves that to `start`: yes on a CUDA device that has the
    memory, besides `reserved_bytes` for the training itself.
    """

    def __init__(
        self,
        lm: LanguageModel,
        tokens: TokenStream,
        sites: Sequence[Site],
        *,
        batch_size: int,
        buffer_tokens: int,
        reuse: int,
        seeds: Sequence[int],
        overlap: bool | None = None,
        reserved_bytes: int = 0,
    ) -> None:
        self.lm, self.tokens, self.sites, self.seeds = lm, tokens, list(sites), list(seeds)
        self.batch_size, self.buffer_tokens, self.reuse = batch_size, buffer_tokens, reuse
        self.overlap, self.reserved_bytes = overlap, reserved_bytes
        self.half = half_size(tokens.n_tokens, buffer_tokens)
        self.scale: dict[Site, float] = {}
        self.mean: dict[Site, Float[Tensor, D]] = {}
        self.n_captured = 0

    @property
    def n_steps(self) -> int:
        """Batches the stream serves."""
        return self.tokens.n_tokens * self.reuse // self.batch_size

    def start(self, progress: Progress) -> None:
        """Fill the first half of the buffer and measure every site's scale and mean on it.

        Raises UserError, as `batches` does, where activations are not finite.
        """
        self._side = SideStream(self.lm.device)
        self._captured = self._capture()
        self._start = self._n_new = 0  # the half that is being filled: its first row, and how many it holds
        self._finite: dict[Site, Bool[Tensor, ""]] = {}  # whether all is that was captured since it was last asked
        for _ in progress.track("capture", self._first_filling(), self.half, lambda n: n):
            pass
        self._check_finite()
        self._side.join()
        self._n_first = self._n_new
        for site, rows in self._buffer.items():
            squares = torch.zeros((), dtype=torch.float64, device=rows.device)
            total = torch.zeros(site.d_in, dtype=torch.float64, device=rows.device)
            for some in rows[: self._n_first].split(8192):
                x = some.double()
                squares += x.square().sum()
                total += x.sum(0)
            self.scale[site], self.mean[site] = scale_and_mean(squares, total, self._n_first)

    def sample(self, site: Site, n: int) -> Float[Tensor, "n D"]:
        """Up to n scaled activations, spread over the first filling of the buffer; call before the first batch."""
        every = max(1, self._n_first // n)
        return self._buffer[site][: self._n_first : every][:n].float() / self.scale[site]

    def batches(self) -> Iterator[Batch]:
        """Yield every batch, once `start` has been called."""
        nothing = {(site, seed): self._buffer[site][:0] for site in self.sites for seed in self.seeds}
        carried = nothing
        for draws in self._cycles():
            n_carried, n_draws = (len(next(iter(of.values()))) for of in (carried, draws))
            ends = range(self.batch_size - n_carried, n_draws + 1, self.batch_size)
            for i, end in enumerate(ends, 1):
                if self.overlap:
                    self._fill(self.half * i // len(ends))
                yield self._scaled(self._take(draws, slice(max(0, end - self.batch_size), end), carried))
                carried = nothing
            # Too few for a batch: they are copied out, for what comes next may overwrite the half they are in.
            carried = self._take(draws, slice(ends[-1] if ends else 0, None), carried)

    def _take(self, draws: Draws, some: slice, carried: dict[Key, Tensor]) -> dict[Key, Tensor]:
        """Copy some of the drawn rows out of the buffer, unscaled, behind those carried over from the last cycle."""
        taken = {}
        for (site, seed), before in carried.items():
            x = self._buffer[site].index_select(0, draws[seed][some])
            taken[site, seed] = torch.cat([before, x]) if len(before) else x
        return taken

    def _scaled(self, batch: dict[Key, Tensor]) -> Batch:
        return {(site, seed): x.float().div_(self.scale[site]) for (site, seed), x in batch.items()}

    def _cycles(self) -> Iterator[Draws]:
        """Yield what to serve before the halves change roles."""
        coins = torch.Generator().manual_seed(0)
        orders = {seed: torch.Generator().manual_seed(seed) for seed in self.seeds}
        old = torch.empty(0, dtype=torch.long)
        while self._n_new or len(old):
            new = torch.arange(self._start, self._start + self._n_new)
            # An odd use falls into the first or the second of an activation's two cycles by the toss of a coin.
            uses = torch.full_like(new, self.reuse // 2)
            if self.reuse % 2:
                uses += torch.randint(2, (len(new),), generator=coins)
            draws = torch.cat([new.repeat_interleave(uses), old])
            self._start, self._n_new = (self._start + self.half) % self._n_rows, 0
            yield {
                seed: send(draws[torch.randperm(len(draws), generator=orders[seed])], self.lm.device)
                for seed in self.seeds
            }
            old = new.repeat_interleave(self.reuse - uses)
            self._fill(self.half)
            self._check_finite()
            self._side.join()

    def _first_filling(self) -> Iterator[int]:
        """Make the buffer and fill its first half, yielding how many activations came with each pass."""
        self._side.wait()  # for the model's weights
        # One pass comes before the buffer: the memory it takes, which torch keeps for the next, is then not free.
        self._pending = next(self._captured, None)
        self._check_finite()  # now, for many passes may follow
        lm, n_tokens = self.lm, self.tokens.n_tokens
        if self.overlap is None:
            n_bytes = buffer_bytes(self.sites, lm.dtype, n_tokens, self.buffer_tokens, overlap=True)
            self.overlap = has_room(lm.device, n_bytes + self.reserved_bytes)
        self._n_rows = buffer_size(n_tokens, self.buffer_tokens, overlap=self.overlap)
        self._buffer = {
            site: torch.empty(self._n_rows, site.d_in, dtype=lm.dtype, device=lm.device) for site in self.sites
        }
        for rows in self._buffer.values():
            self._side.uses(rows)
        yield from iter(self._store, 0)

    def _fill(self, n: int) -> None:
        """See that the half that is being filled holds n activations, or all that there are."""
        while self._n_new < n and self._store():
            pass

    def _store(self) -> int:
        """Write what one pass has captured into the half that is being filled; return how many activations."""
        room = self.half - self._n_new
        if room and self._pending is None:
            self._pending = next(self._captured, None)
        if not room or self._pending is None:
            return 0
        if not self._n_new:
            self._side.wait()  # for batches that the main stream still reads from this half
        activations, counted = self._pending
        n, at = min(room, len(counted)), self._start + self._n_new
        with self._side.work():
            for site, x in activations.items():
                torch.index_select(x, 0, counted[:n], out=self._buffer[site][at : at + n])
        self._pending = (activations, counted[n:]) if n < len(counted) else None
        self._n_new += n
        return n

    def _capture(self) -> Iterator[Pass]:
        """Run the model, pass by pass, up to the stream's number of tokens."""
        per_pass = CAPTURE_TOKENS.get(self.lm.device.type, CAPTURE_TOKENS["cuda"])
        for batch in self.tokens.batches(max(1, per_pass // self.tokens.context_size)):
            yield self._run_pass(batch)

    def _run_pass(self, batch: TokenBatch) -> Pass:
        # Which positions count is read off the tokens on the CPU: the device need not be asked how many there are.
        positions = (~special_mask(batch.tokens, self.lm.special_ids)).flatten().nonzero().squeeze(1)
        counted = positions[: self.tokens.n_tokens - self.n_captured]
        self.n_captured += len(counted)
        with self._side.work():
            activations = self.lm.capture(send(batch.tokens, self.lm.device), self.sites, check=False)
            for site, x in activations.items():
                self._finite[site] = torch.isfinite(x).all() & self._finite.get(site, True)
            rows = {site: x.flatten(0, 1).to(self.lm.dtype) for site, x in activations.items()}
            return rows, send(counted, self.lm.device)

    def _check_finite(self) -> None:
        """Raise UserError unless all that was captured is finite: where a half is full, the host waits for the side."""
        with self._side.work():
            for site, finite in self._finite.items():
                check_finite(site, finite, self.lm.dtype)
        self._finite = {}


def scale_and_mean(
    squares: Float64[Tensor, ""], total: Float64[Tensor, "D"], n: int
) -> tuple[float, Float[Tensor, "D"]]:
    """The input scale, and the mean of scaled activations, from sums over n activations; this reads the device."""
    scale = math.sqrt(float(squares) / n)
    return scale, (total / n / scale).float()
