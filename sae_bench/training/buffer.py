"""One stream of activations for every SAE of a run: captured once, shuffled in bounded memory, scaled by one scalar.

The buffer has two halves. A cycle refills one half from the language model and serves activations drawn at random from
both, so every activation lives for two cycles, and is served exactly `reuse` times in all. Memory is the buffer's and
nothing grows with the number of tokens. Each seed draws in an order of its own from the same buffer; all SAEs of a seed
see the same batches.

With `overlap`, training does not stand still while a half is refilled: the next activations are staged in a third half
meanwhile. Before each batch of a cycle the model is given its fair share of the passes, on a stream of its own, so that
the staged half is full when the cycle ends; then the halves change roles. The batches are the same, bit for bit.

A checkpoint does not hold the buffer: it says which of the stream's activations were in it, and they are captured
again, in the same passes. Activations are numbered for that, from the beginning of the stream's tokens.

Shapes: B tokens of a batch, N tokens in the buffer, P positions of a pass, n of them counted, D width of a site.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from sae_bench.device import SideStream, halved, has_room, send
from sae_bench.errors import UserError
from sae_bench.lm.model import LanguageModel, check_finite
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import TokenBatch, TokenStream, special_mask
from sae_bench.progress import Progress

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
    memory, besides `reserved_bytes` for the training itself. `first` leaves out what earlier training has seen: the
    stream begins at that activation.
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
        first: int = 0,
    ) -> None:
        self.lm, self.tokens, self.sites, self.seeds = lm, tokens, list(sites), list(seeds)
        self.batch_size, self.buffer_tokens, self.reuse = batch_size, buffer_tokens, reuse
        self.overlap, self.reserved_bytes = overlap, reserved_bytes
        self.first = first
        self._start = self._n_new = 0  # the half that is being filled: its first row, and how many it holds
        self._n_old = 0  # how many the half before it holds
        self._at_once: int | None = None  # contexts in a pass, where memory was too small for all
        self.half = half_size(tokens.n_tokens - first, buffer_tokens)
        self.scale: dict[Site, float] = {}
        self.mean: dict[Site, Float[Tensor, D]] = {}
        self.n_captured = first
        """The number of the next activation."""

    @property
    def n_steps(self) -> int:
        """Batches the stream serves in all, those before a checkpoint included."""
        return (self.tokens.n_tokens - self.first) * self.reuse // self.batch_size

    @property
    def n_left(self) -> int:
        """Batches that `batches` will serve."""
        return self.n_steps - self._n_before - self._skip

    def start(self, progress: Progress) -> None:
        """Fill the first half of the buffer and measure every site's scale and mean on it, unless `scale` is known.

        Raises UserError, as `batches` does, where activations are not finite.
        """
        per_pass = CAPTURE_TOKENS.get(self.lm.device.type, CAPTURE_TOKENS["cuda"])
        self._contexts_per_pass = max(1, per_pass // self.tokens.context_size)
        self._coins = torch.Generator().manual_seed(0)
        self._orders = {seed: torch.Generator().manual_seed(seed) for seed in self.seeds}
        self._old = torch.empty(0, dtype=torch.long)  # rows of the last cycle's half, as often as they are still due
        self._n_before = 0  # batches before this cycle
        self._skip = 0  # batches of the first cycle that were served before a checkpoint
        self._cycle_state: dict[str, Any] = {}
        self._begin(self.first, progress)
        self._carried = {(site, seed): self._buffer[site][:0] for site in self.sites for seed in self.seeds}
        self._n_first = self._n_new
        if not self.scale:
            self._measure()

    def resume(self, state: Mapping[str, Any], progress: Progress) -> None:
        """`start`, but go on where `state_dict` was taken.

        Raises:
            UserError: the corpus or the tokenizer is not the one of then.
        """
        device, self._contexts_per_pass = self.lm.device, state["contexts_per_pass"]
        self._coins, self._orders = torch.Generator(), {seed: torch.Generator() for seed in self.seeds}
        self._coins.set_state(state["coins"])
        for seed, order in self._orders.items():
            order.set_state(state["orders"][str(seed)])
        self.scale = {site: state["scale"][site.name] for site in self.sites}
        self.mean = {site: state["mean"][site.name].to(device) for site in self.sites}
        self._n_before, self._skip = state["n_before"], state["n_done"] - state["n_before"]
        self._old = torch.empty(0, dtype=torch.long)
        self._cycle_state = {}
        self._begin(state["first_row"], progress)
        if state["has_old"]:
            uses = self._first_uses(self._n_new)
            self._old = torch.arange(self._n_new).repeat_interleave(self.reuse - uses)
            self._n_old, self._start, self._n_new = self._n_new, self.half % self._n_rows, 0
            self._fill(self.half)
            self._check_finite()
            self._side.join()
        self._carried = {
            (site, seed): state["carried"][f"{site.name} {seed}"].to(device)
            for site in self.sites
            for seed in self.seeds
        }
        if self.tokens.fingerprint != state["fingerprint"]:
            raise UserError(
                f'the corpus "{self.tokens.source}" does not give the tokens that it gave before the checkpoint: '
                "bring back the old files and library versions, or start anew with --overwrite"
            )

    def state_dict(self, n_done: int) -> dict[str, Any]:
        """What `resume` needs to go on after the first `n_done` batches, the last that were asked for."""
        return self._cycle_state | {
            "n_done": n_done,
            "scale": {site.name: scale for site, scale in self.scale.items()},
            "mean": {site.name: mean for site, mean in self.mean.items()},
        }

    def _begin(self, row: int, progress: Progress) -> None:
        """Make the buffer and fill its first half with the activations from number `row` on."""
        self._side = SideStream(self.lm.device)
        self._captured = self._capture(row)
        self._start = self._n_new = self._n_old = 0
        self._finite: dict[Site, Bool[Tensor, ""]] = {}  # whether all is that was captured since it was last asked
        self._row = row  # number of the activation that the half under way begins with
        for _ in progress.track("capture", self._first_filling(), self.half, lambda n: n):
            pass
        self._check_finite()
        self._side.join()

    def _measure(self) -> None:
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
        """Yield every batch that is left, once `start` or `resume` has been called."""
        nothing = {key: rows[:0] for key, rows in self._carried.items()}
        for draws in self._cycles():
            carried = self._carried
            n_carried, n_draws = (len(next(iter(of.values()))) for of in (carried, draws))
            ends = range(self.batch_size - n_carried, n_draws + 1, self.batch_size)
            for i, end in enumerate(ends, 1):
                if self.overlap:
                    self._fill(self.half * i // len(ends))
                if i > self._skip:
                    yield self._scaled(self._take(draws, slice(max(0, end - self.batch_size), end), carried))
                carried = nothing
            # Too few for a batch: they are copied out, for what comes next may overwrite the half they are in.
            self._carried = self._take(draws, slice(ends[-1] if ends else 0, None), carried)
            self._n_before, self._skip = self._n_before + len(ends), 0

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
        while self._n_new or len(self._old):
            self._cycle_state = self._state_of_cycle()
            new = torch.arange(self._start, self._start + self._n_new)
            uses = self._first_uses(len(new))
            draws = torch.cat([new.repeat_interleave(uses), self._old])
            self._row, self._n_old = self._row + self._n_old, len(new)
            self._start, self._n_new = (self._start + self.half) % self._n_rows, 0
            self._old = new.repeat_interleave(self.reuse - uses)
            yield {
                seed: send(draws[torch.randperm(len(draws), generator=self._orders[seed])], self.lm.device)
                for seed in self.seeds
            }
            self._fill(self.half)
            self._check_finite()
            self._side.join()

    def _first_uses(self, n: int) -> Int[Tensor, "n"]:
        """How often each of n new activations is served in the first of its two cycles.

        An odd use falls into the one or the other by the toss of a coin.
        """
        self._coins_before = self._coins.get_state()
        uses = torch.full((n,), self.reuse // 2)
        if self.reuse % 2:
            uses += torch.randint(2, (n,), generator=self._coins)
        return uses

    def _state_of_cycle(self) -> dict[str, Any]:
        """The cycle that begins: `first_row` is the first activation in the buffer, in last cycle's half if any."""
        has_old = self._n_old > 0
        return {
            "first_row": self._row,
            "has_old": has_old,
            "coins": self._coins_before if has_old else self._coins.get_state(),
            "orders": {str(seed): order.get_state() for seed, order in self._orders.items()},
            "carried": {f"{site.name} {seed}": rows.clone() for (site, seed), rows in self._carried.items()},
            "n_before": self._n_before,
            "contexts_per_pass": self._contexts_per_pass,
            "fingerprint": self.tokens.fingerprint,
        }

    def _first_filling(self) -> Iterator[int]:
        """Make the buffer and fill its first half, yielding how many activations came with each pass."""
        self._side.wait()  # for the model's weights
        # One pass comes before the buffer: the memory it takes, which torch keeps for the next, is then not free.
        self._pending = next(self._captured, None)
        self._check_finite()  # now, for many passes may follow
        lm, n_tokens = self.lm, self.tokens.n_tokens - self.first
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

    def _capture(self, row: int) -> Iterator[Pass]:
        """Run the model, pass by pass, from activation number `row` up to the stream's number of tokens.

        Passes have the same contexts wherever one begins, so that they give the same bits.
        """
        n_contexts = self._contexts_per_pass
        of_text = self.tokens.context_size - 1  # every context has one special token, the first
        start = row // of_text // n_contexts * n_contexts
        self.n_captured = start * of_text
        for batch in self.tokens.batches(n_contexts, start):
            yield self._run_pass(batch, row)

    def _run_pass(self, batch: TokenBatch, row: int) -> Pass:
        # Which positions count is read off the tokens on the CPU: the device need not be asked how many there are.
        positions = (~special_mask(batch.tokens, self.lm.special_ids)).flatten().nonzero().squeeze(1)
        counted = positions[max(0, row - self.n_captured) : self.tokens.n_tokens - self.n_captured]
        self.n_captured += len(positions[: self.tokens.n_tokens - self.n_captured])
        with self._side.work():
            activations = self._activations(batch.tokens)
            for site, x in activations.items():
                self._finite[site] = torch.isfinite(x).all() & self._finite.get(site, True)
            rows = {site: x.flatten(0, 1).to(self.lm.dtype) for site, x in activations.items()}
            return rows, send(counted, self.lm.device)

    def _activations(self, tokens: Int[Tensor, "contexts S"]) -> dict[Site, Tensor]:
        """One pass, or several where memory does not suffice."""
        while True:
            try:
                parts = [
                    self.lm.capture(send(some, self.lm.device), self.sites, check=False)
                    for some in tokens.split(self._at_once or len(tokens))
                ]
                return {site: torch.cat([part[site] for part in parts]) for site in self.sites}
            except torch.OutOfMemoryError:
                self._at_once = halved(self._at_once or len(tokens), "contexts in a pass that captures activations")

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
