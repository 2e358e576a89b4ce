"""Examples of a latent: short excerpts of text with its activations, and which of them is shown to whom.

A context is cut into excerpts of at most `EXCERPT_TOKENS` tokens behind its BOS, which belongs to none. Of every latent
there are kept

    top      the excerpts of highest activation
    decile   a uniform sample of the excerpts in which it fires, each with its decile among them by peak activation
    silent   a uniform sample of the excerpts in which it does not fire on any token: checked, not assumed
    hard     silent ones that activate similar latents (on request)

`assign_uses` says what each is for: explaining or scoring, never both.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from transformers import PreTrainedTokenizerBase

EXCERPT_TOKENS = 32
N_DECILES = 10

N_TOP = 12
"""Top excerpts kept, of which `N_TOP_SCORED` score."""
N_TOP_SCORED = 2
N_FIRING = 60
"""Sample of firing excerpts kept; `SCORED_PER_DECILE` of each decile score, `EXPLAINED_PER_DECILE` explain."""
SCORED_PER_DECILE = 2
EXPLAINED_PER_DECILE = 1
N_SILENT = 20
N_HARD = 10
"""Hard negatives, where asked for; they then take the places of as many silent ones."""

MIN_FIRED = 15
"""A latent has to fire so often on the interpretation tokens to be sampled."""

Kind = Literal["top", "decile", "silent", "hard"]
Use = Literal["explain", "score"]

KEPT: dict[Kind, tuple[int, bool]] = {
    "top": (N_TOP, True), "decile": (N_FIRING, True), "silent": (N_SILENT, False), "hard": (N_HARD, False),
}  # fmt: skip
"""Of every latent so many excerpts of each kind, and whether it fires in them: its activations are then kept too."""


@dataclass(frozen=True)
class Example:
    """An excerpt as one latent sees it."""

    kind: Kind
    use: Use
    decile: int | None
    """1 to 10, by peak activation; None for silent ones."""
    document: int
    tokens: Sequence[str]
    """A tuple until it is written to a file: texts that the corpus holds twice are found by it."""
    activations: Sequence[float]

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def peak(self) -> float:
        """Its largest activation, by size: of latents of two signs the sign does not count."""
        return max(map(abs, self.activations))


@dataclass(frozen=True)
class LatentExamples:
    """A latent by its examples, numbered as in its file, and its largest activation anywhere, by size."""

    sae: str
    latent: int
    maximum: float
    examples: Sequence[Example]

    def random(self, *purpose: object) -> Random:
        """Random numbers that are the same for this latent and purpose always."""
        return seeded_random(self.sae, self.latent, *purpose)

    def scoring(self, *kinds: str) -> list[int]:
        """Numbers of the examples of these kinds that are for scoring."""
        return [i for i, one in enumerate(self.examples) if one.use == "score" and one.kind in kinds]


def assign_uses(top: Sequence[Example], firing: Sequence[Example], silent: Sequence[Example], random: Random,
                hard: Sequence[Example] = ()) -> list[Example]:  # fmt: skip
    """Divide examples between explaining and scoring.

    Scoring gets at most half of the firing ones, so that a latent which fires in few examples can still be explained.
    A text that the corpus holds twice is one example: it must not explain and then score.
    """
    top = list({example.tokens: example for example in reversed(top)}.values())[::-1]
    by_peak = sorted({example.tokens: example for example in firing}.values(), key=lambda example: example.peak)
    deciles: list[list[Example]] = [[] for _ in range(N_DECILES)]
    for rank, example in enumerate(by_peak):
        deciles[rank * N_DECILES // len(by_peak)].append(replace(example, decile=rank * N_DECILES // len(by_peak) + 1))
    for members in deciles:
        random.shuffle(members)
    content = {example.tokens for example in (*top, *firing)}
    scored = _from_deciles(deciles, SCORED_PER_DECILE, len(content) // 2, "score", random)
    taken = {example.tokens for example in scored}
    free = [example for example in top if example.tokens not in taken]
    n_scored = min(N_TOP_SCORED, len(free) // 3)
    for example in random.sample(free, n_scored):
        scored.append(replace(example, use="score"))
        free.remove(example)
    explained = [replace(example, use="explain") for example in free[: N_TOP - N_TOP_SCORED]]
    taken |= {example.tokens for example in (*scored, *explained)}
    left = [[one for one in members if one.tokens not in taken] for members in deciles]
    explained += _from_deciles(left, EXPLAINED_PER_DECILE, N_DECILES, "explain", random)
    n_silent = N_SILENT - min(len(hard), N_HARD)
    return [*explained, *scored, *(replace(one, use="score") for one in (*silent[:n_silent], *hard[:N_HARD]))]


def _from_deciles(deciles: list[list[Example]], each: int, at_most: int, use: Use, random: Random) -> list[Example]:
    """Up to `each` of every decile, and `at_most` in all, taken from the deciles in turn."""
    turns = [
        replace(example, use=use)
        for turn in range(each)
        for members in random.sample(deciles, len(deciles))
        for example in members[turn:][:1]
    ]
    return turns[:at_most]


def seeded_random(*parts: object) -> Random:
    """Random numbers that depend on `parts` and on nothing else, in every process and on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return Random(int.from_bytes(digest[:8], "little"))


class Pieces:
    """The text that each token stands for, so that the pieces of an excerpt, joined, are its text.

    A token is decoded behind an anchor, for decoders drop a space in front. Where tokens are bytes of one character,
    the last of them gets the character and the others get nothing; one that is cut off at the excerpt's end shows as
    the replacement character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._start = len(self._decode([]))
        self._cache: dict[int, str] = {}

    def _decode(self, ids: Sequence[int]) -> str:
        ids = [*self._anchor, *ids]
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def of(self, token: int) -> str:
        """The text of one token by itself."""
        if token not in self._cache:
            self._cache[token] = self._decode([token])[self._start :]
        return self._cache[token]

    def split(self, ids: Sequence[int]) -> list[str]:
        """The text of every token of an excerpt."""
        pieces: list[str] = []
        while rest := ids[len(pieces) :]:
            text, n = self.of(rest[0]), 1
            while "\ufffd" in text and n < min(6, len(rest)):
                n += 1  # a character in several tokens: the shortest run that decodes whole
                text = self._decode(rest[:n])[self._start :]
            pieces += [self.of(rest[0])] if "\ufffd" in text else [*[""] * (n - 1), text]
        return pieces
