"""Which side of the split a text is on, so that texts that repeat each other do not face each other across it.

Two rules, both of the corpus' content alone. A text's side is decided by the smallest hash of its shingles (five words
in a row): two texts of resemblance J, the share of their shingles that both have, share that hash with probability J
(MinHash; Broder, Compression and Complexity of Sequences, 1997). So of an evaluation text's near-duplicates, at most
1 - J are on the training side. And where the whole corpus can be read, an evaluation text is on no side if more
than a twentieth of its longer shingles (eight words) stand in training texts: shared paragraphs make no near-duplicate.

Clusters were tried in place of the first rule, on the embedded corpus. At a resemblance of .5 they left what the
smallest hash leaves; low enough to catch shared paragraphs, they chained more than half the corpus into one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal
from zlib import crc32

import numpy as np

from sae_bench.lm.long_documents import parts_of
from sae_bench.lm.shared_runs import HashArray, mixed

Split = Literal["train", "eval"]
Part = Literal["board", "tuning"]
"""Both sides have both parts: what is tuned on one is measured on the other."""

RULE = "near-duplicates 1"
"""Name and version of the rules: raise it when a text may change its side."""

TUNING_SHARE = 5  # and of each side one in this many is in the part for tuning
EVAL_SHARE = 10  # one text in this many is held out, before those that repeat training texts are taken out
KEY_WORDS = 5
REPEAT_WORDS = 8
MOST_REPEATED = 0.05

AT_ONCE = 1 << 20
"""Shingles that are in memory at once, and words whose hashes are chained one by one: texts have no bound."""
ABREAST = 1 << 12
"""Chains of a text of more words, whose ends are chained in turn."""

_WORD = re.compile(r"\w+")


def split_of(text: str) -> Split:
    """Return the side that a document belongs to, a function of its content alone."""
    return _side(_words(text))


def is_of(text: str, split: Split, part: Part | None) -> bool:
    """Whether a document is on a side, and in a part of it; None is both parts.

    Its part is decided as its side is: near-duplicates of a text that was tuned on are not met on a board.
    """
    key = _key(_words(text))
    tuning = int(key[0]) // EVAL_SHARE % TUNING_SHARE == 0
    return _side_of(key) == split and (part is None or tuning == (part == "tuning"))


def cluster_of(text: str) -> int:
    """A number, below 2^63, that two texts of resemblance J share with probability J, and copies for certain.

    It is the smallest hash of the text's shingles. Texts that repeat each other are one piece of evidence, not several.
    """
    return int(_key(_words(text))[0] >> np.uint64(1))


def digest(text: str) -> int:
    """A number that stands for a text: the hash of all its words."""
    words = _words(text)
    if len(words) <= AT_ONCE:
        return _chained(words)
    rows = len(words) // ABREAST * ABREAST
    chains = np.zeros(ABREAST, dtype=np.uint64)
    for row in words[:rows].reshape(-1, ABREAST):
        chains = mixed(chains + row)
    return _chained(np.concatenate([chains, words[rows:], np.array([len(words)], dtype=np.uint64)]))


def repeated_texts(texts: Callable[[], Iterable[str]]) -> frozenset[int]:
    """The digests of evaluation texts that are mostly repeated in training texts.

    The corpus is read twice, in any order. In memory are the shingles of the evaluation texts alone.
    """
    held_out = {digest(text): np.unique(np.concatenate([*_shingles(_words(text), REPEAT_WORDS)])) for text in texts()
                if split_of(text) == "eval"}  # fmt: skip
    if not held_out:
        return frozenset()
    known = np.unique(np.concatenate(list(held_out.values())))
    found = np.zeros(len(known), dtype=bool)
    for words in map(_words, texts()):
        if _side(words) == "eval":
            continue
        for hashes in _shingles(words, REPEAT_WORDS):
            place = np.searchsorted(known, hashes).clip(max=len(known) - 1)
            found[place[known[place] == hashes]] = True
    return frozenset(
        text for text, hashes in held_out.items() if found[np.searchsorted(known, hashes)].mean() > MOST_REPEATED
    )


def _side(words: HashArray) -> Split:
    return _side_of(_key(words))


def _side_of(key: HashArray) -> Split:
    return "eval" if int(key[0]) % EVAL_SHARE == 0 else "train"


def _key(words: HashArray) -> HashArray:
    # Mixed once more: a smallest hash is a small number.
    return mixed(np.array([min(hashes.min() for hashes in _shingles(words, KEY_WORDS))]))


def _words(text: str) -> HashArray:
    """One hash a word, upper and lower case alike; of a text without a word, that of the text."""
    if not _WORD.search(text):
        return _hashed([text.encode()])
    found = ("\n".join(_WORD.findall(part.lower())).encode().split(b"\n") for part in parts_of(text) if part)
    return np.concatenate([_hashed(words) for words in found if words != [b""]])


def _hashed(words: Sequence[bytes]) -> HashArray:
    return mixed(np.fromiter(map(crc32, words), dtype=np.uint64, count=len(words)))


def _shingles(words: HashArray, length: int) -> Iterator[HashArray]:
    """One hash for every `length` words in a row, some at a time; the whole text if it is shorter."""
    length = min(length, len(words))
    n = len(words) - length + 1
    for first in range(0, n, AT_ONCE):
        some = min(AT_ONCE, n - first)
        hashes = np.zeros(some, dtype=np.uint64)
        for offset in range(first, first + length):
            hashes = mixed(hashes + words[offset : offset + some])
        yield hashes


def _chained(words: HashArray) -> int:
    """The one shingle of all the words: `mixed`, on numbers and not on arrays of one, in a tenth of the time."""
    whole, digest = (1 << 64) - 1, 0
    for word in words.tolist():
        digest = (digest + word + 0x9E3779B97F4A7C15) & whole
        digest = ((digest ^ (digest >> 30)) * 0xBF58476D1CE4E5B9) & whole
        digest = ((digest ^ (digest >> 27)) * 0x94D049BB133111EB) & whole
        digest ^= digest >> 31
    return digest
