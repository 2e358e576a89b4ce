"""How much of the evaluation text was trained on: runs of 13 tokens that both have.

A document on its own side of the split may still repeat another one's words: boilerplate, shared paragraphs, licences.
So what is left is counted: an evaluation token is shared if it lies in a run of 13 tokens of its document that also
occurs in a document of the training text (runs of 13: the decontamination of GPT-3, arXiv 2005.14165, appendix C).

The runs of the evaluation text are held as 64-bit hashes, and the training text is looked up in them as it goes by, so
memory is that of the evaluation text alone. Two different runs have one hash with a probability of 2^-64: for 10^6
evaluation tokens and 10^9 of training, a single false hit is expected in some 20,000 measurements.

Letters: m tokens of text; a text is [2, m], token ids above and document ordinals below.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

RUN_LENGTH = 13

IdArray = NDArray[np.int64]
HashArray = NDArray[np.uint64]

_FACTORS = np.random.default_rng(13).integers(1 << 64, size=RUN_LENGTH, dtype=np.uint64) | np.uint64(1)


class SharedRuns:
    """Counts what an evaluation text, given as [2, m] pieces, shares with a training text that is shown to it."""

    def __init__(self, evaluation: Iterable[IdArray]) -> None:
        text = np.concatenate([np.empty((2, 0), dtype=np.int64), *evaluation], axis=1)
        self.n_tokens = text.shape[1]
        self._first, hashes = _runs(text)
        self._hashes, self._which = np.unique(hashes, return_inverse=True)
        self.restart()

    def restart(self) -> None:
        """Forget the training text."""
        self._found = np.zeros(len(self._hashes), dtype=bool)
        self._tail = np.empty((2, 0), dtype=np.int64)

    def see(self, training: IdArray) -> None:
        """Look at the next piece of the training text; runs may go on from the piece before."""
        text = np.concatenate([self._tail, training], axis=1)
        self._tail = text[:, -(RUN_LENGTH - 1) :]
        if len(self._hashes):
            _, hashes = _runs(text)
            place = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
            self._found[place[self._hashes[place] == hashes]] = True

    @property
    def share(self) -> float:
        """The share of the evaluation tokens that lie in a shared run, by the training text seen so far."""
        first = self._first[self._found[self._which]]
        shared = np.zeros(self.n_tokens, dtype=bool)
        for offset in range(RUN_LENGTH):
            shared[first + offset] = True
        return float(shared.mean()) if self.n_tokens else 0.0


def _runs(text: IdArray) -> tuple[IdArray, HashArray]:
    """Where the text's runs of RUN_LENGTH tokens of one document begin, and their hashes."""
    if text.shape[1] < RUN_LENGTH:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
    n = text.shape[1] - RUN_LENGTH + 1
    first = np.flatnonzero(text[1, :n] == text[1, RUN_LENGTH - 1 :])
    windows = np.lib.stride_tricks.sliding_window_view(mixed(text[0].astype(np.uint64)), RUN_LENGTH)
    return first, mixed(windows @ _FACTORS)[first]


def mixed(values: HashArray) -> HashArray:
    """A bijection of 64-bit numbers that leaves no pattern: SplitMix64's finaliser (Steele et al., OOPSLA 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
