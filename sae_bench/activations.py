"""One stream of activations for every SAE of a run: captured once, shuffled in bounded memory, scaled by one scalar.

The buffer has two halves. A cycle refills one half from the language model and serves activations drawn at random from
both, so every activation lives for two cycles, and is served exactly `reuse` times in all. Memory is the buffer's and
nothing grows with the number of tokens. Each seed draws in an order of its own from the same buffer; all SAEs of a seed
see the same batches.

Shapes: B tokens of a batch, N tokens in the buffer, D width of a site.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.data import TokenStream, special_mask
from sae_bench.lm import LanguageModel
from sae_bench.progress import Progress
from sae_bench.sites import Site

CAPTURE_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""Tokens in one forward pass: enough to fill the device."""

Batch = dict[tuple[Site, int], Float[Tensor, "B D"]]
"""Scaled float32 activations by site and seed."""


class ActivationStream:
    """Shuffled, scaled activations at some sites of a language model.

    After `start` it knows, per site, `scale` - the scalar C with E||x / C||^2 = 1 - and `mean` (of x / C), measured on
    the first filling of the buffer, whose documents come in random order.
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
    ) -> None:
        self.lm, self.tokens, self.sites, self.seeds = lm, tokens, list(sites), list(seeds)
        self.batch_size, self.reuse = batch_size, reuse
        self.half = min(math.ceil(buffer_tokens / 2), tokens.n_tokens)
        self.scale: dict[Site, float] = {}
        self.mean: dict[Site, Float[Tensor, D]] = {}
        self.n_captured = 0

    @property
    def n_steps(self) -> int:
        """Batches the stream serves."""
        return self.tokens.n_tokens * self.reuse // self.batch_size

    def start(self, progress: Progress) -> None:
        """Fill the first half of the buffer and measure every site's scale and mean on it."""
        two_halves = 2 * self.half if self.half < self.tokens.n_tokens else self.half
        self._buffer = {
            site: torch.empty(two_halves, site.d_in, dtype=self.lm.dtype, device=self.lm.device) for site in self.sites
        }
        self._captured = self._capture()
        self._pending: dict[Site, Tensor] = {site: rows[:0] for site, rows in self._buffer.items()}
        rounds = progress.track("capture", self._fill(slice(0, self.half)), self.half, lambda n: n)
        self._n_first = sum(rounds)
        for site, rows in self._buffer.items():
            norms, total = 0.0, torch.zeros(site.d_in, dtype=torch.float64, device=rows.device)
            for some in rows[: self._n_first].split(8192):
                norms += float(some.double().square().sum())
                total += some.double().sum(0)
            self.scale[site] = math.sqrt(norms / self._n_first)
            self.mean[site] = (total / self._n_first / self.scale[site]).float()

    def sample(self, site: Site, n: int) -> Float[Tensor, "n D"]:
        """Up to n scaled activations, spread over the first filling of the buffer; call before the first batch."""
        every = max(1, self._n_first // n)
        return self._buffer[site][: self._n_first : every][:n].float() / self.scale[site]

    def batches(self) -> Iterator[Batch]:
        """Yield every batch, once `start` has been called."""
        carried = {key: self._buffer[key[0]][:0] for key in self._keys}
        for draws in self._cycles():
            first = next(iter(carried.values()))
            taken, n_draws = 0, len(draws[self.seeds[0]])
            while len(first) + n_draws - taken >= self.batch_size:
                rows = slice(taken, taken + self.batch_size - len(first))
                yield {
                    (site, seed): torch.cat([carried[site, seed], self._buffer[site][draws[seed][rows]]])
                    .float()
                    .div_(self.scale[site])
                    for site, seed in self._keys
                }
                taken = rows.stop
                carried = {key: self._buffer[key[0]][:0] for key in self._keys}
                first = next(iter(carried.values()))
            # Too few for a batch: they are copied out, for the next cycle overwrites half of the buffer.
            carried = {
                (site, seed): torch.cat([carried[site, seed], self._buffer[site][draws[seed][taken:]]])
                for site, seed in self._keys
            }

    @property
    def _keys(self) -> list[tuple[Site, int]]:
        return [(site, seed) for site in self.sites for seed in self.seeds]

    def _cycles(self) -> Iterator[dict[int, Int[Tensor, "draws"]]]:
        """Yield, per seed, the buffer rows to serve before the next refill, in random order."""
        device = self.lm.device
        coins = torch.Generator().manual_seed(0)
        orders = {seed: torch.Generator().manual_seed(seed) for seed in self.seeds}
        old = torch.empty(0, dtype=torch.long)
        start, n_new = 0, self._n_first
        while n_new or len(old):
            new = torch.arange(start, start + n_new)
            # An odd use falls into the first or the second of an activation's two cycles by the toss of a coin.
            uses = torch.full((n_new,), self.reuse // 2)
            if self.reuse % 2:
                uses += torch.randint(2, (n_new,), generator=coins)
            draws = torch.cat([new.repeat_interleave(uses), old])
            yield {seed: draws[torch.randperm(len(draws), generator=orders[seed])].to(device) for seed in self.seeds}
            old = new.repeat_interleave(self.reuse - uses)
            start = self.half - start
            if start + self.half <= len(self._buffer[self.sites[0]]):
                n_new = sum(self._fill(slice(start, start + self.half)))
            else:
                n_new = 0

    def _fill(self, rows: slice) -> Iterator[int]:
        """Write the next activations into the given rows, yielding how many came with each pass of the model."""
        at = rows.start
        while at < rows.stop:
            if not len(self._pending[self.sites[0]]):
                captured = next(self._captured, None)
                if captured is None:
                    return
                self._pending = captured
            n = min(rows.stop - at, len(self._pending[self.sites[0]]))
            for site, x in self._pending.items():
                self._buffer[site][at : at + n] = x[:n]
            self._pending = {site: x[n:] for site, x in self._pending.items()}
            at += n
            yield n

    def _capture(self) -> Iterator[dict[Site, Float[Tensor, "n D"]]]:
        """Yield the activations of counted positions, pass by pass, up to the stream's number of tokens."""
        per_pass = CAPTURE_TOKENS.get(self.lm.device.type, CAPTURE_TOKENS["cuda"])
        for batch in self.tokens.batches(max(1, per_pass // self.tokens.context_size)):
            counted = ~special_mask(batch.tokens, self.lm.special_ids).to(self.lm.device)
            left = self.tokens.n_tokens - self.n_captured
            activations = self.lm.capture(batch.tokens, self.sites)
            self.n_captured += min(left, int(counted.sum()))
            yield {site: x[counted][:left] for site, x in activations.items()}
