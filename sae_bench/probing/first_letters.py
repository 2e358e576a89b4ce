"""Words of a vocabulary in prompts that name first letters, and for each letter a logistic probe on x.

The spelling task of Chanin et al. (2024, arXiv 2409.14507), as SAEBench 0.6.0 asks it but for what docs/absorption.md
lists: there every word has a prompt of its own, ten examples and the word. Here a context goes on: what was read is an
example for the next, so that a word costs a tenth of the tokens. What follows a word cannot change what is read at it.

Shapes: n words that are read, D width of a site.
"""

import hashlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_bench.errors import UserError
from sae_bench.evaluation.task import OwnText, Passages
from sae_bench.lm.tokens import opening_id
from sae_bench.probing.probe import check_sklearn

LETTERS = string.ascii_lowercase

WORD = re.compile(r"([▁Ġ])([A-Za-z]+)")
"""A word of a vocabulary: what stands for a space in it, and letters."""

LINE = "\n {word} has the first letter: {letter}"
EXAMPLES = 10
READ = 16
"""So many words of a context are read."""

TRAINED = 0.8
"""Share of a letter's words that probes learn from; the others are tested, and scored."""

PROBE_C = 0.1
"""Of scikit-learn: how little the probes' weights are held back, where a component of x has variance one."""

Line = tuple[list[int], int]
"""The tokens of a line, and the place of its word among them."""


@dataclass(frozen=True, kw_only=True)
class LetterWords(Passages):
    """The contexts, and what each word is that is read in them: row by row of x."""

    words: Sequence[str]
    letter: Int[ndarray, " n"]
    """Place of the first letter in the alphabet, from 0."""
    trained: Bool[ndarray, " n"]
    """Whether probes learn from it."""


@dataclass(frozen=True)
class LetterProbes:
    """Logistic probes on x, one for each letter: what all SAEs of a site share."""

    scale: float
    """Root of the mean squared deviation of a component of x, over the training words."""
    direction: Float[ndarray, "26 D"]
    """Of norm one; zero where a letter has too few words."""
    f1: Float[ndarray, " 26"]
    """On the test words."""
    found: Bool[ndarray, "26 n"]
    """Test words of the letter that its probe takes for such."""

    @staticmethod
    def fit(x: Float[ndarray, "n D"], letter: Int[ndarray, " n"], trained: Bool[ndarray, " n"]) -> "LetterProbes":
        """Fit a letter's probe on the training words, and see what it finds among the test words."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import f1_score

        mean = x[trained].mean(0)
        scale = float(np.sqrt(np.square(x[trained] - mean).mean())) or 1.0
        scaled = (x - mean) / scale
        direction, f1 = np.zeros((len(LETTERS), x.shape[1])), np.zeros(len(LETTERS))
        found = np.zeros((len(LETTERS), len(x)), dtype=bool)
        for i in range(len(LETTERS)):
            own = letter == i
            if not own[trained].any() or own[trained].all() or not own[~trained].any():
                continue
            probe = LogisticRegression(C=PROBE_C, class_weight="balanced", max_iter=1000)
            says = probe.fit(scaled[trained], own[trained]).predict(scaled)
            direction[i] = probe.coef_[0] / (np.linalg.norm(probe.coef_[0]) or 1.0)
            f1[i] = f1_score(own[~trained], says[~trained], zero_division=0.0)
            found[i] = says & own & ~trained
        return LetterProbes(scale, direction, f1, found)


class FirstLetters(OwnText):
    """Words of the tokenizer's vocabulary, up to `per_letter` of each letter, in prompts that name first letters.

    Raises:
        UserError: scikit-learn is not installed.
    """

    def __init__(self, per_letter: int, definitions: str) -> None:
        check_sklearn()
        self.per_letter, self.definitions = per_letter, definitions

    @property
    def identity(self) -> Mapping[str, str]:
        """The words follow from it and from the tokenizer; their hash is among a record's details."""
        return {"definitions": self.definitions, "words": f"{self.per_letter} of each letter"}

    def describe(self) -> str:
        return f"up to {self.per_letter} words of each letter, of the tokenizer's vocabulary"

    def passages(self, tokenizer: PreTrainedTokenizerBase, max_context: int) -> Iterable[LetterWords]:
        words: list[str] = []
        contexts: list[list[int]] = []
        positions: list[list[int]] = []
        trained = []
        for is_trained in (True, False):
            lines = lines_of(tokenizer, self.per_letter, trained=is_trained)
            some, places = contexts_of(list(lines.values()), opening_id(tokenizer), max_context)
            words, contexts, positions = [*words, *lines], contexts + some, positions + places
            trained += [is_trained] * len(lines)
        letter = np.array([LETTERS.index(word[0].lower()) for word in words])
        yield LetterWords(contexts, positions, words=words, letter=letter, trained=np.array(trained))

    def of_site(self, passages: Passages, x: Float[Tensor, "n D"]) -> LetterProbes:
        assert isinstance(passages, LetterWords), "the passages are this text's own"
        return LetterProbes.fit(x.cpu().to(torch.float64).numpy(), passages.letter, passages.trained)


def order_of(word: str) -> str:
    """What words are sorted by: an order that has nothing to do with them, and is the same everywhere."""
    return hashlib.sha256(word.encode()).hexdigest()


def lines_of(tokenizer: PreTrainedTokenizerBase, per_letter: int, *, trained: bool) -> dict[str, Line]:
    """Training or test words of a vocabulary, each with its line.

    Raises:
        UserError: there are too few.
    """
    token_of = {found[2]: (token, i) for token, i in tokenizer.get_vocab().items() if (found := WORD.fullmatch(token))}
    by_letter: dict[str, list[str]] = {letter: [] for letter in LETTERS}
    for word in token_of:
        by_letter[word[0].lower()].append(word)
    chosen = []
    for words in by_letter.values():
        some = sorted(words, key=order_of)[:per_letter]
        n = round(TRAINED * len(some))
        chosen += some[:n] if trained else some[n:]
    chosen.sort(key=order_of)
    texts = [LINE.format(word=word, letter=word[0].upper()) for word in chosen]
    tokens = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    # A line in which the word is not its own token is left out: it could not be read there.
    lines = {
        word: (line, line.index(token_of[word][1]))
        for word, line in zip(chosen, tokens, strict=True)
        if token_of[word][1] in line
    }
    if len(lines) <= EXAMPLES:
        kind = "training" if trained else "test"
        raise UserError(
            f"absorption: {len(lines)} {kind} words of the tokenizer's vocabulary are letters after a space, and more "
            f"than {EXAMPLES} are needed; give --absorption-words more than {per_letter}, or leave the task out"
        )
    return lines


def contexts_of(lines: Sequence[Line], opening: int, max_context: int) -> tuple[list[list[int]], list[list[int]]]:
    """Contexts of lines in a row, ten before those that are read; and the positions of the words that are read.

    Every line is read once, in order; before the first ones stand the last ones, as examples.

    Raises:
        UserError: the language model takes fewer tokens than eleven lines have.
    """
    longest = max(len(line) for line, _ in lines)
    read = min(READ, len(lines) - EXAMPLES, (max_context - 1) // longest - EXAMPLES)
    if read < 1:
        raise UserError(
            f"absorption: {EXAMPLES + 1} lines of {longest} tokens are needed, and the language model takes "
            f"{max_context}; leave the task out"
        )
    contexts, positions = [], []
    for start in range(0, len(lines), read):
        context, places = [opening], []
        for i in range(start - EXAMPLES, min(start + read, len(lines))):
            line, place = lines[i]
            if i >= start:
                places.append(len(context) + place)
            context += line
        contexts.append(context[: places[-1] + 1])
        positions.append(places)
    return contexts, positions
