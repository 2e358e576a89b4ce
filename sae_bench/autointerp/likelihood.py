"""How likely a judge finds "true", from the log-probabilities of the token with which it says true or false."""

import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

from sae_bench.autointerp.completion import Tokens
from sae_bench.autointerp.parse import FALSE_WORDS, TRUE_WORDS

_WORD = r"\W*?(true|false|yes|no|1|0)\b"


class Likelihood(NamedTuple):
    """The probability of "true" among true and false, and whether the judge gave it or only said true or false."""

    value: float
    given: bool


def likelihood_of_true(said: Mapping[str, bool], tokens: Tokens) -> list[Likelihood]:
    """Of every identifier that was answered, in that order; 1 or 0 where no log-probabilities tell.

    `tokens`: the answer's, each with its alternatives. The word of an identifier is the one behind it, or, where the
    text does not name it, as in an answer of one word, the first.
    """
    text = "".join(token for token, _ in tokens)
    ends = list(accumulate(len(token) for token, _ in tokens))
    found = []
    for name, answer in said.items():
        word = re.search(re.escape(name) + _WORD, text, re.IGNORECASE) or (
            re.match(_WORD, text, re.IGNORECASE) if len(said) == 1 else None
        )
        at = bisect_right(ends, word.start(1)) if word else None
        value = None if at is None else _share_of_true(tokens[at][1])
        found.append(Likelihood(float(answer), False) if value is None else Likelihood(value, True))
    return found


def _share_of_true(alternatives: Mapping[str, float]) -> float | None:
    """Of the words that mean true or false; None if none of the alternatives is one, as where a word is in pieces."""
    weights = {True: 0.0, False: 0.0}
    for token, log_probability in alternatives.items():
        word = re.sub(r"\W", "", token).lower()  # a token may carry spaces, quotation marks or a comma
        if word in TRUE_WORDS | FALSE_WORDS:
            weights[word in TRUE_WORDS] += math.exp(log_probability)
    total = sum(weights.values())
    return weights[True] / total if total else None
