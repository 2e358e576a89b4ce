"""Collecting: where in the text the sampled latents of every SAE fire, and where they do not.

The language model runs over the interpretation tokens twice, for all SAEs at once. The first time it is counted how
often each latent fires, for only those that fire `MIN_FIRED` times may be sampled, at random by a seed. The second time
the examples of the sampled latents are collected (`examples` says which). Memory does not grow with the tokens but for
the tokens themselves; `collection_bytes` says beforehand how much it will be.

Shapes: N sampled latents, F = d_sae, n contexts of S tokens in a batch, E excerpts in a context, W = n E, L tokens in
each, c counted positions, P active pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.autointerp.examples import (
    EXCERPT_TOKENS,
    KEPT,
    MIN_FIRED,
    N_FIRING,
    Example,
    Kind,
    Pieces,
    assign_uses,
    seeded_random,
)
from sae_bench.autointerp.reservoir import Reservoir, random_keys
from sae_bench.device import halved
from sae_bench.lm.activations import ContextStream
from sae_bench.lm.contexts import Contexts
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site
from sae_bench.progress import Progress
from sae_bench.saes.active import Active, as_active
from sae_bench.saes.base import SparseAutoencoder

N_BINS = 20
N_NEIGHBOURS = 4
"""Latents of the most similar decoder rows, in whose excerpts hard negatives are looked for."""

MAX_CONTEXTS = 16
WORKING_BYTES = 256 << 20
"""Bound on the activations of one SAE's sampled latents in a batch, which is one context at least."""
ALLOWANCE = 1.6
"""What allocators hold of memory that is asked for and given back; 1.44 was needed (benchmarks/collection.py)."""

SEED = 0
FIRING, SILENT = 1, 2  # salts


@dataclass(frozen=True)
class Subject:
    """An SAE whose latents are collected."""

    id: str
    sae: SparseAutoencoder
    site: Site


@dataclass(frozen=True)
class CollectedLatent:
    """What was collected of one latent."""

    latent: int
    n_fired: int
    maximum: float
    edges: list[float]
    counts: list[int]
    examples: list[Example]


@dataclass(frozen=True)
class Collection:
    """What was collected of one SAE from a text: the sampled latents, and how many there were to sample from."""

    subject: Subject
    stream: ContextStream
    found: list[CollectedLatent]
    n_eligible: int


@torch.no_grad()
def collect(
    lm: LanguageModel,
    stream: ContextStream,
    subjects: Sequence[Subject],
    n_latents: int,
    progress: Progress,
    *,
    hard: bool = False,
) -> Iterator[Collection]:
    """Sample up to `n_latents` of every SAE and collect their examples; `hard` also collects hard negatives.

    Where memory does not suffice a pass begins again with half as many contexts at a time.
    """
    size = contexts_at_once(stream.context_size, n_latents)
    while True:
        try:
            collectors = _passes(lm, stream, subjects, n_latents, size, progress, hard=hard)
            break
        except torch.OutOfMemoryError:
            size = halved(size, "contexts in a collection batch")
    text = Text(lm, stream)
    for collector in collectors:
        yield Collection(collector.subject, stream, list(collector.results(text)), collector.n_eligible)


def contexts_at_once(context_size: int, n_latents: int) -> int:
    return max(1, min(MAX_CONTEXTS, WORKING_BYTES // (4 * context_size * n_latents)))


def collection_bytes(n_latents: int, widths: Sequence[int], n_tokens: int, context_size: int) -> int:
    """Memory that collecting takes beside the language model and SAEs of these widths."""
    n_excerpt = min(EXCERPT_TOKENS, context_size - 1)
    per_latent = sum(Reservoir.n_bytes(n, n_excerpt * fires) for n, fires in KEPT.values()) + 8 * N_BINS
    counts = sum((8 + 4) * width for width in widths)
    text = 2 * 8 * n_tokens
    # The dense activations of a batch, and while a reservoir changes, three times what it holds.
    working = 3 * 4 * context_size * contexts_at_once(context_size, n_latents) * n_latents
    working += 3 * n_latents * Reservoir.n_bytes(N_FIRING, n_excerpt)
    return int(ALLOWANCE * (len(widths) * n_latents * per_latent + counts + working)) + text


def _passes(
    lm: LanguageModel,
    stream: ContextStream,
    subjects: Sequence[Subject],
    n_latents: int,
    size: int,
    progress: Progress,
    *,
    hard: bool,
) -> list["Collector"]:
    sites = list(dict.fromkeys(subject.site for subject in subjects))

    def batches(stage: str) -> Iterator[tuple[int, Contexts, dict[Site, Float[Tensor, "c _"]]]]:
        first = 0
        for batch in progress.track(stage, stream.batches(size), stream.n_contexts, lambda batch: len(batch.tokens)):
            contexts = Contexts.of(batch, lm.special_ids, lm.device)
            activations = lm.capture(contexts.tokens, sites)
            yield first, contexts, {s: x.flatten(0, 1)[contexts.counted].float() for s, x in activations.items()}
            first += len(batch.tokens)

    n_fired = [torch.zeros(s.sae.config.d_sae, dtype=torch.long, device=lm.device) for s in subjects]
    maximum = [torch.zeros(s.sae.config.d_sae, device=lm.device) for s in subjects]
    for _, _, x in batches("count firing"):
        for subject, fired, most in zip(subjects, n_fired, maximum, strict=True):
            _, latent, value = pairs_of(as_active(subject.sae.encode(x[subject.site])))
            fired += torch.bincount(latent, minlength=len(fired))
            most.scatter_reduce_(0, latent, value.abs(), "amax")
    collectors = [
        Collector(subject, fired, most, n_latents, stream.context_size, hard=hard)
        for subject, fired, most in zip(subjects, n_fired, maximum, strict=True)
    ]
    for first, contexts, x in batches("collect"):
        for collector in collectors:
            collector.add(as_active(collector.subject.sae.encode(x[collector.subject.site])), contexts, first)
    return collectors


def pairs_of(f: Active) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"], Float[Tensor, " P"]]:
    """Token, latent and value wherever a latent fires, which is where its value is not zero."""
    token, latent, value = f.pairs()
    fires = value != 0
    return token[fires], latent[fires], value[fires]


class Collector:
    """Collects the examples of one SAE's sampled latents."""

    def __init__(
        self,
        subject: Subject,
        n_fired: Int[Tensor, " F"],
        maximum: Float[Tensor, " F"],
        n_latents: int,
        context_size: int,
        *,
        hard: bool,
    ) -> None:
        self.subject, self.n_fired, self.maximum = subject, n_fired, maximum
        device = n_fired.device
        eligible = (n_fired >= MIN_FIRED).nonzero().squeeze(1).tolist()
        self.n_eligible = len(eligible)
        sampled = sorted(seeded_random("latents", SEED, subject.id).sample(eligible, min(n_latents, len(eligible))))
        self.latent = torch.tensor(sampled, dtype=torch.long, device=device)
        self.length = min(EXCERPT_TOKENS, context_size - 1)
        self.per_context = (context_size - 1) // self.length
        self._row = torch.full((len(n_fired),), -1, dtype=torch.long, device=device)
        self._row[self.latent] = torch.arange(len(sampled), device=device)
        n = len(sampled)
        self.kept = {kind: Reservoir(n, k, self.length * fires, device) for kind, (k, fires) in KEPT.items()}
        self.histogram = torch.zeros(n, N_BINS, dtype=torch.long, device=device)
        self.neighbours = self._nearest() if hard else None

    def _nearest(self) -> Int[Tensor, "N M"]:
        """For each sampled latent those of the most similar decoder rows, among all that fire."""
        rows = torch.nn.functional.normalize(self.subject.sae.W_dec.detach(), dim=1)
        similar = rows[self.latent] @ rows.T
        similar[:, self.n_fired == 0] = -torch.inf
        similar.scatter_(1, self.latent[:, None], -torch.inf)
        return similar.topk(min(N_NEIGHBOURS, similar.shape[1]), dim=1).indices

    def add(self, f: Active, contexts: Contexts, first: int) -> None:
        """Take in a batch whose first context has the number `first`."""
        if not len(self.latent):
            return
        token, latent, value = pairs_of(f)
        size, n_excerpts = contexts.tokens.shape[1], len(contexts.tokens) * self.per_context
        position = contexts.counted[token]
        place = position % size - 1  # behind the BOS
        inside = (place >= 0) & (place < self.per_context * self.length)
        excerpt = position // size * self.per_context + place // self.length
        row = self._row[latent]
        self._bin(row[row >= 0], value[row >= 0])
        mine = inside & (row >= 0)
        dense = value.new_zeros(len(self.latent), n_excerpts, self.length)
        dense[row[mine], excerpt[mine], place[mine] % self.length] = value[mine]
        peak = dense.abs().amax(2)
        fires = peak > 0
        number = first * self.per_context + torch.arange(n_excerpts, device=value.device)
        never = torch.tensor(torch.inf, device=value.device)
        self.kept["top"].add(torch.where(fires, -peak, never), number, dense)
        self.kept["decile"].add(torch.where(fires, random_keys(self.latent, number, FIRING), never), number, dense)
        self.kept["silent"].add(torch.where(fires, never, random_keys(self.latent, number, SILENT)), number)
        if self.neighbours is not None:
            near = self._neighbours_peak(latent[inside], excerpt[inside], value[inside], n_excerpts)
            self.kept["hard"].add(torch.where(~fires & (near > 0), -near, never), number)

    def _bin(self, row: Int[Tensor, " p"], value: Float[Tensor, " p"]) -> None:
        at = (value.abs() / self.maximum[self.latent[row]] * N_BINS).long().clamp(max=N_BINS - 1)
        self.histogram.view(-1).index_add_(0, row * N_BINS + at, torch.ones_like(at))

    def _neighbours_peak(
        self, latent: Int[Tensor, " p"], excerpt: Int[Tensor, " p"], value: Float[Tensor, " p"], n_excerpts: int
    ) -> Float[Tensor, "N W"]:
        """The largest activation of a neighbour in every excerpt, as a share of that neighbour's maximum."""
        assert self.neighbours is not None
        near, inverse = self.neighbours.unique(return_inverse=True)
        row = torch.full_like(self._row, -1)
        row[near] = torch.arange(len(near), device=near.device)
        mine = row[latent] >= 0
        peak = value.new_zeros(len(near) * n_excerpts)
        share = (value.abs() / self.maximum[latent])[mine]
        peak.scatter_reduce_(0, row[latent][mine] * n_excerpts + excerpt[mine], share, "amax")
        return peak.view(len(near), n_excerpts)[inverse].amax(1)

    def results(self, text: "Text") -> Iterator[CollectedLatent]:
        """What was collected, latent by latent."""
        for i, latent in enumerate(self.latent.tolist()):
            top, firing, silent, hard = (
                [text.example(kind, number, activations, self) for number, activations in reservoir.kept(i)]
                for kind, reservoir in self.kept.items()
            )
            random = seeded_random("excerpts", SEED, self.subject.id, latent)
            examples = assign_uses(top, firing, silent, random, hard)
            most = float(self.maximum[latent])
            edges = [most * bin_ / N_BINS for bin_ in range(N_BINS + 1)]
            counts = self.histogram[i].tolist()
            yield CollectedLatent(latent, int(self.n_fired[latent]), most, edges, counts, examples)


class Text:
    """The interpretation tokens as text: read once more from the corpus, without the language model."""

    def __init__(self, lm: LanguageModel, stream: ContextStream) -> None:
        batches = [(batch.tokens.int(), batch.document.int()) for batch in stream.batches(MAX_CONTEXTS)]
        self.tokens, self.document = (torch.cat(parts) for parts in zip(*batches, strict=True))
        self.pieces = Pieces(lm.tokenizer)

    def example(self, kind: Kind, number: int, activations: list[float], collector: Collector) -> Example:
        """The excerpt of this number among those that the collector counts, with a latent's activations."""
        context, place = divmod(number, collector.per_context)
        span = slice(1 + place * collector.length, 1 + (place + 1) * collector.length)
        values = activations or [0.0] * collector.length
        peak = max(range(len(values)), key=lambda i: abs(values[i]))
        return Example(
            kind=kind,
            use="score",
            decile=None,
            document=int(self.document[context, span][peak]),
            tokens=tuple(self.pieces.split(self.tokens[context, span].tolist())),
            activations=tuple(values),
        )
