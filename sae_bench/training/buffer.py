"""One buffer of activations for every SAE of a run: captured once, shuffled in bounded memory, scaled by one scalar.

The buffer has two halves. A cycle refills one half from the language model and serves activations drawn at random from
both, so every activation lives for two cycles, and is served exactly `reuse` times in all. Memory is the buffer's and
nothing grows with the number of tokens. Each seed draws in an order of its own from the same buffer; all SAEs of a seed
see the same batches.

With `overlap`, training does not stand still while a half is refilled: the next activations are staged in a third half
meanwhile. Before each batch of a cycle the model is given its fair share of the passes, on a stream of its own, so that
the staged half is full when the cycle ends; then the halves change roles. The batches are the same, bit for bit.

A checkpoint does not hold the buffer: it says which of the stream's activations were in it, and they are captured
again, in the same passes. Activations are numbered for that, from the beginning of the stream's tokens.

Shapes: B tokens of a batch, N tokens in the buffer, D width of a site.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.device import SideStream, has_room, send
from sae_bench.errors import UserError
from sae_bench.lm.activations import ActivationModel, ContextStream
from sae_bench.lm.sites import Site
from sae_bench.progress import Progress
from sae_bench.training.capture import Capture, contexts_in_a_pass
from sae_bench.training.serving import Batch, Key, Scaling, Serving, buffer_bytes, buffer_size, half_size
from sae_bench.training.source import TextFacts

Draws = dict[int, Int[Tensor, " draws"]]
"""Rows of the buffer by seed, in random order."""


class ActivationBuffer:
    """Shuffled, scaled activations at some sites of a language model, or of another `ActivationModel`.

    To make one is to fill its first half. The input `scale` C of every site, with E||x / C||^2 = 1, and the `mean` of
    its x / C are measured on that, whose documents come in random order, unless `scaling` gives them. With `state` the
    buffer goes on where that `state_dict` was taken. It is an `ActivationSource`.

    Raises UserError, as `batches` does, where activations are not finite; and where the corpus or the tokenizer is not
    the one of `state`.
    """

    def __init__(
        self,
        lm: ActivationModel,
        tokens: ContextStream,
        sites: Sequence[Site],
        serving: Serving,
        progress: Progress,
        *,
        scaling: Scaling | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.lm, self.tokens, self.sites, self.serving = lm, tokens, list(sites), serving
        self.half = half_size(tokens.n_tokens - serving.first, serving.buffer_tokens)
        self.n_steps = serving.n_steps(tokens.n_tokens)
        """Batches the buffer serves in all, those before a checkpoint included."""
        at = self._beginning() if state is None else state
        self._coins = _generator(at["coins"])
        self._orders = {seed: _generator(at["orders"][str(seed)]) for seed in serving.seeds}
        keys = product(self.sites, serving.seeds)
        self._carried = {(site, seed): at["carried"][f"{site.name} {seed}"].to(lm.device) for site, seed in keys}
        self._n_before: int = at["n_before"]  # batches before this cycle
        self._skip: int = (
            at["n_done"] - at["n_before"]
        )  # batches of the first cycle that were served before a checkpoint
        self._cycle_state: dict[str, Any] = {}
        self._row = at["first_row"]  # number of the activation that the half under way begins with
        self._start = self._n_new = 0  # the half that is being filled: its first row, and how many it holds
        self._n_old = 0  # how many the half before it holds
        self._old = torch.empty(0, dtype=torch.long)  # rows of the last cycle's half, as often as they are still due
        self._side = SideStream(lm.device)
        self._capture = Capture(lm, tokens, sites, self._side, self._row, at["contexts_per_pass"])
        for _ in progress.track("capture", self._first_filling(), self.half, lambda n: n):
            pass
        self._filled()
        self._n_first = self._n_new
        if state is not None and scaling is None:
            scaling = Scaling.of_state(state, sites, lm.device)
        self.scaling = scaling or Scaling.measured({site: rows[: self._n_first] for site, rows in self._buffer.items()})
        self.scale, self.mean = self.scaling.scale, self.scaling.mean
        if at["has_old"]:
            self._begin_second_half()
        if state is not None and tokens.fingerprint != state["fingerprint"]:
            raise UserError(
                f'the corpus "{tokens.source}" does not give the tokens that it gave before the checkpoint: '
                "bring back the old files and library versions, or start anew with --overwrite"
            )

    @property
    def n_captured(self) -> int:
        """The number of the next activation."""
        return self._capture.n_captured

    @property
    def capture_seconds(self) -> float:
        """What the language model's passes took so far; see `Capture`."""
        return self._capture.seconds

    @property
    def n_left(self) -> int:
        """Batches that `batches` will serve."""
        return self.n_steps - self._n_before - self._skip

    def state_dict(self, n_done: int) -> dict[str, Any]:
        """What another buffer needs to go on after the first `n_done` batches, the last that were asked for."""
        return self._cycle_state | {"n_done": n_done} | self.scaling.state_dict()

    def facts(self) -> TextFacts:
        """What there is to say of the text so far."""
        tokens = self.tokens
        share = tokens.watch.share if tokens.watch else None
        return TextFacts(self.n_captured, tokens.fingerprint, tokens.passes, share)

    def sample(self, site: Site, n: int) -> Float[Tensor, "n D"]:
        """Up to n scaled activations, spread over the first filling of the buffer; call before the first batch."""
        return self.unscaled_sample(site, n).float() / self.scale[site]

    def unscaled_sample(self, site: Site, n: int) -> Float[Tensor, "n D"]:
        """The same as the language model gave them, in its dtype."""
        every = max(1, self._n_first // n)
        return self._buffer[site][: self._n_first : every][:n]

    def batches(self) -> Iterator[Batch]:
        """Yield every batch that is left, in order."""
        return map(self.scaling.applied, self.unscaled())

    def unscaled(self) -> Iterator[dict[Key, Float[Tensor, "B D"]]]:
        """The same as the language model gave them, in its dtype: `scaling` makes batches of them."""
        batch_size = self.serving.batch_size
        nothing = {key: rows[:0] for key, rows in self._carried.items()}
        for draws in self._cycles():
            carried = self._carried
            n_carried, n_draws = (len(next(iter(of.values()))) for of in (carried, draws))
            ends = range(batch_size - n_carried, n_draws + 1, batch_size)
            for i, end in enumerate(ends, 1):
                if self.overlap:
                    self._fill(self.half * i // len(ends))
                if i > self._skip:
                    yield self._take(draws, slice(max(0, end - batch_size), end), carried)
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

    def _cycles(self) -> Iterator[Draws]:
        """Yield what to serve before the halves change roles."""
        while self._n_new or len(self._old):
            self._cycle_state = self._state_of_cycle()
            new = torch.arange(self._start, self._start + self._n_new)
            uses = self._first_uses(len(new))
            draws = torch.cat([new.repeat_interleave(uses), self._old])
            self._row, self._n_old = self._row + self._n_old, len(new)
            self._start, self._n_new = (self._start + self.half) % self._n_rows, 0
            self._old = new.repeat_interleave(self.serving.reuse - uses)
            yield {
                seed: send(draws[torch.randperm(len(draws), generator=self._orders[seed])], self.lm.device)
                for seed in self.serving.seeds
            }
            self._fill(self.half)
            self._filled()

    def _first_uses(self, n: int) -> Int[Tensor, " n"]:
        """How often each of n new activations is served in the first of its two cycles.

        An odd use falls into the one or the other by the toss of a coin.
        """
        self._coins_before = self._coins.get_state()
        uses = torch.full((n,), self.serving.reuse // 2)
        if self.serving.reuse % 2:
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
            "contexts_per_pass": self._capture.contexts_per_pass,
            "fingerprint": self.tokens.fingerprint,
        }

    def _beginning(self) -> dict[str, Any]:
        """The state before the first cycle."""
        lm, seeds = self.lm, self.serving.seeds
        nothing = {site: torch.empty(0, site.d_in, dtype=lm.dtype, device=lm.device) for site in self.sites}
        return {
            "first_row": self.serving.first,
            "has_old": False,
            "coins": torch.Generator().manual_seed(0).get_state(),
            "orders": {str(seed): torch.Generator().manual_seed(seed).get_state() for seed in seeds},
            "carried": {f"{site.name} {seed}": nothing[site] for site, seed in product(self.sites, seeds)},
            "n_before": 0,
            "n_done": 0,
            "contexts_per_pass": contexts_in_a_pass(self.tokens.context_size, lm.device),
        }

    def _begin_second_half(self) -> None:
        """What is in the buffer is what the cycle before left: toss its coins again, and fill the half after it."""
        uses = self._first_uses(self._n_new)
        self._old = torch.arange(self._n_new).repeat_interleave(self.serving.reuse - uses)
        self._n_old, self._start, self._n_new = self._n_new, self.half % self._n_rows, 0
        self._fill(self.half)
        self._filled()

    def _first_filling(self) -> Iterator[int]:
        """Make the buffer and fill its first half, yielding how many activations came with each pass."""
        self._side.wait()  # for the model's weights
        # One pass comes before the buffer: the memory it takes, which torch keeps for the next, is then not free.
        self._capture.ready()
        self._capture.check_finite()  # now, for many passes may follow
        lm, serving, n_tokens = self.lm, self.serving, self.tokens.n_tokens - self.serving.first
        self.overlap = serving.overlap
        if self.overlap is None:
            n_bytes = buffer_bytes(self.sites, lm.dtype, n_tokens, serving.buffer_tokens, overlap=True)
            self.overlap = has_room(lm.device, n_bytes + serving.reserved_bytes)
        self._n_rows = buffer_size(n_tokens, serving.buffer_tokens, overlap=self.overlap)
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
        free = self.half - self._n_new
        if not free or not self._capture.ready():
            return 0
        if not self._n_new:
            self._side.wait()  # for batches that the main stream still reads from this half
        n = self._capture.write(self._buffer, self._start + self._n_new, free)
        self._n_new += n
        return n

    def _filled(self) -> None:
        """A half is full: see that it is finite; the main stream may read it from now on."""
        self._capture.check_finite()
        self._side.join()


def _generator(state: Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator
