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
from collections.abc import Callable, Iterable, Sequence
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
    return int(_shingles(words, len(words))[0])


def repeated_texts(texts: Callable[[], Iterable[str]]) -> frozenset[int]:
    """The digests of evaluation texts that are mostly repeated in training texts.

    The corpus is read twice, in any order. In memory are the shingles of the evaluation texts alone.
    """
    held_out = {digest(text): np.unique(_shingles(_words(text), REPEAT_WORDS)) for text in texts()
                if split_of(text) == "eval"}  # fmt: skip
    if not held_out:
        return frozenset()
    known = np.unique(np.concatenate(list(held_out.values())))
    found = np.zeros(len(known), dtype=bool)
    for words in map(_words, texts()):
        if _side(words) == "eval":
            continue
        hashes = _shingles(words, REPEAT_WORDS)
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
    return mixed(_shingles(words, KEY_WORDS).min(keepdims=True))


def _words(text: str) -> HashArray:
    """One hash a word, upper and lower case alike; of a text without a word, that of the text."""
    if not _WORD.search(text):
        return _hashed([text.encode()])
    found = ("\n".join(_WORD.findall(part.lower())).encode().split(b"\n") for part in parts_of(text) if part)
    return np.concatenate([_hashed(words) for words in found if words != [b""]])


def _hashed(words: Sequence[bytes]) -> HashArray:
    return mixed(np.fromiter(map(crc32, words), dtype=np.uint64, count=len(words)))


def _shingles(words: HashArray, length: int) -> HashArray:
    """One hash for every `length` words in a row; the whole text if it is shorter."""
    length = min(length, len(words))
    n = len(words) - length + 1
    hashes = np.zeros(n, dtype=np.uint64)
    for offset in range(length):
        hashes = mixed(hashes + words[offset : offset + n])
    return hashes
