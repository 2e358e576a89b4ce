"""What a sweep asks of devices, as numbers: of each SAE, of each site, and of every cell, whatever is in it."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

Seconds = tuple[float, ...]
"""On each kind of device, in the order of the fleet."""

Room = tuple[int, int, int]
"""Bytes in training, in evaluation, and while latents are collected: the stages come one after the other."""

PRECISION = 1e-3
"""Of the bound on a cell's seconds."""


@dataclass(frozen=True)
class Devices:
    """Some devices of one kind, and the bytes that a cell may take on each."""

    kind: str
    count: int
    n_bytes: int


@dataclass(frozen=True)
class SiteWork:
    """A site: the decoder layers that an activation there takes, and what a cell pays once for it, layers apart.

    `seconds` are the language model's (ablations); `n_bytes` hold its buffer.
    """

    name: str
    depth: int
    seconds: Seconds
    n_bytes: Room
    stream_bytes: int
    """What serving all its batches of one seed to another device would move."""


@dataclass(frozen=True)
class SAEWork:
    """One SAE: its steps, its evaluation, and, as `lm_seconds` of these `seconds`, the replays from its site.

    One that is trained already has no steps left, and asks for no activations to train on.
    """

    id: str
    site: SiteWork
    seed: int
    seconds: Seconds
    lm_seconds: Seconds
    n_bytes: Room
    trained: bool = False


@dataclass(frozen=True)
class SharedWork:
    """What every cell pays once, whatever is in it."""

    start_seconds: Seconds
    """Until the first activation: loading the language model, reading text."""
    pass_seconds: Seconds
    """The language model's clean pass over the held-out tokens."""
    layer_seconds: Seconds
    """For each decoder layer down to the deepest site: training's tokens, and held-out ones for the mean."""
    capture_seconds: Seconds
    """Of `layer_seconds`, those that a shared capture would save: training's."""
    n_bytes: Room
    """The process, the language model, and what one SAE at a time holds during its turn."""
    lm_bytes: int
    """Of `n_bytes`, those of the language model's weights."""

    def lm_seconds(self, depth: int, training_depth: int, kind: int = 0) -> float:
        """The language model's part of a cell, sites and replays apart.

        Its deepest site takes `depth` layers, and the deepest of those that are left to train `training_depth`.
        """
        layer, capture = self.layer_seconds[kind], self.capture_seconds[kind]
        return self.pass_seconds[kind] + depth * (layer - capture) + training_depth * capture


class Line:
    """All SAEs of a sweep from the deepest site to the shallowest, with sums, so that any stretch is known at once.

    Stretches are `first` to `last`, that one left out; a site that lies in two stretches counts in both.
    """

    def __init__(self, works: Sequence[SAEWork], shared: SharedWork) -> None:
        self.works = sorted(works, key=lambda work: (-work.site.depth, work.site.name, work.trained, work.seed))
        self.shared = shared
        all_of_them = range(len(self.works))
        self._to_train = [i for i in all_of_them if not self.works[i].trained]
        self._seconds = _sums([work.seconds[0] for work in self.works])
        self._site_seconds = _OfSites(self.works, all_of_them, lambda site: site.seconds[0])
        self._bytes = [_sums(stage) for stage in zip(*(work.n_bytes for work in self.works), strict=True)]
        self._site_bytes = [
            _OfSites(self.works, self._to_train, lambda site: site.n_bytes[0]),
            _OfSites(self.works, all_of_them, lambda site: site.n_bytes[1]),
            _OfSites(self.works, all_of_them, lambda site: site.n_bytes[2]),
        ]
        self._least = max(1, min(max(work.n_bytes) for work in self.works))
        self._reach: dict[tuple[int, int], int] = {}

    def training_depth(self, first: int, last: int) -> int:
        """The layers to the deepest site of those of a stretch that are left to train; 0 where none is."""
        i = bisect_left(self._to_train, first)
        inside = i < len(self._to_train) and self._to_train[i] < last
        return self.works[self._to_train[i]].site.depth if inside else 0

    def seconds(self, first: int, last: int) -> float:
        """How long a cell of the stretch takes on the first kind of device."""
        return (
            self.shared.start_seconds[0]
            + self.shared.lm_seconds(self.works[first].site.depth, self.training_depth(first, last))
            + self._seconds[last] - self._seconds[first]
            + self._site_seconds.total(first, last)
        )  # fmt: skip

    def n_bytes(self, first: int, last: int) -> int:
        """The most that a cell of the stretch holds in any stage."""
        most = max(
            base + works[last] - works[first] + sites.total(first, last)
            for base, works, sites in zip(self.shared.n_bytes, self._bytes, self._site_bytes, strict=True)
        )
        return int(most)

    def cut(self, n_bytes: int, seconds: float = inf) -> list[tuple[int, int]]:
        """Stretches of no more bytes, nor seconds where it is more than one SAE: the fewest that there can be."""
        cuts, first = [], 0
        while first < len(self.works):
            if (first, n_bytes) not in self._reach:
                end = min(len(self.works), first + n_bytes // self._least + 1)
                self._reach[first, n_bytes] = self._furthest(first, end, self.n_bytes, n_bytes)
            last = self._furthest(first, self._reach[first, n_bytes], self.seconds, seconds)
            cuts.append((first, last))
            first = last
        return cuts

    def _furthest(self, first: int, end: int, measure: Callable[[int, int], float], bound: float) -> int:
        """Where the longest stretch from `first` ends, within `end` and the bound; one SAE at least."""
        ends = range(first + 1, end + 1)
        return max(first + bisect_right(ends, bound, key=lambda last: measure(first, last)), first + 1)


class _OfSites:
    """What the sites of some SAEs of a line take, each site of a stretch once."""

    def __init__(self, works: Sequence[SAEWork], inside: Sequence[int], of: Callable[[SiteWork], float]) -> None:
        sites = {works[i].site.name: works[i].site for i in inside}
        number = {name: n for n, name in enumerate(sites)}
        self._inside = inside
        self._site = [number[works[i].site.name] for i in inside]
        self._sums = _sums([of(site) for site in sites.values()])

    def total(self, first: int, last: int) -> float:
        one, other = bisect_left(self._inside, first), bisect_left(self._inside, last)
        return self._sums[self._site[other - 1] + 1] - self._sums[self._site[one]] if one < other else 0


Stretch = tuple[Line, int, int]
"""SAEs of a line, from the first to the last, that one left out."""


def cut(lines: Sequence[Line], n_bytes: int, seconds: float = inf) -> list[Stretch]:
    """Every line in stretches as `Line.cut` makes them."""
    return [(line, first, last) for line in lines for first, last in line.cut(n_bytes, seconds)]


def cut_into(lines: Sequence[Line], n_cells: int, n_bytes: int) -> list[Stretch]:
    """Stretches whose longest is about as short as can be, of which there are at most `n_cells`, if bytes allow."""
    high = max(line.seconds(first, last) for line, first, last in cut(lines, n_bytes))
    low = sum(work.seconds[0] for line in lines for work in line.works) / n_cells
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if len(cut(lines, n_bytes, middle)) <= n_cells:
            high = middle
        else:
            low = middle
    return cut(lines, n_bytes, high)


def _sums(values: Iterable[float]) -> list[float]:
    return [0, *accumulate(values)]
