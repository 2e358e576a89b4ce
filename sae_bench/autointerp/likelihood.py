"""How likely a judge finds "true", from the log-probabilities of the token with which it says true or false."""

import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

from sae_bench.autointerp.completion import Tokens
from sae_bench.autointerp.parse import FALSE_WORDS, TRUE_WORDS

_WORD = r"\W*?(true|false|yes|no|1|0)\b"


def likelihood_of_true(said: Mapping[str, bool], tokens: Tokens) -> list[float | None]:
    """The probability of "true" among true and false, of every identifier that was answered, in that order.

    None where no log-probabilities tell. `tokens`: the answer's, each with its alternatives. The word of an identifier
    is the last one that stands behind it and says what was read of it: before that an excerpt may be said back. Where
    the text does not name the identifier, as in an answer of one word, it is the first word.
    """
    text = "".join(token for token, _ in tokens)
    ends = list(accumulate(len(token) for token, _ in tokens))
    found = []
    for name, answer in said.items():
        words = [*re.finditer(re.escape(name) + _WORD, text, re.IGNORECASE)]
        if not words and len(said) == 1 and (word := re.match(_WORD, text, re.IGNORECASE)):
            words = [word]
        places = (bisect_right(ends, word.start(1)) for word in reversed(words))
        shares = (_share_of_true(*tokens[place], answer) for place in places)
        found.append(next((share for share in shares if share is not None), None))
    return found


def _share_of_true(token: str, alternatives: Mapping[str, float], said: bool) -> float | None:
    """The share of the words that mean true; None unless the token is a word that means what was said, among others.

    A word that is not listed has at most the least of the listed probabilities, and at most what they leave of 1.
    """
    if _meaning(token) is not said or token not in alternatives:
        return None
    listed = {other: math.exp(log_probability) for other, log_probability in alternatives.items()}
    weights = {True: 0.0, False: 0.0}
    for other, probability in listed.items():
        if (meaning := _meaning(other)) is not None:
            weights[meaning] += probability
    if not weights[not said]:
        weights[not said] = min(max(0.0, 1 - sum(listed.values())), *listed.values())
    total = sum(weights.values())
    return weights[True] / total if total else None


def _meaning(token: str) -> bool | None:
    """Whether a token is a word for true or for false; it may carry spaces, quotation marks or a comma."""
    word = re.sub(r"\W", "", token).lower()
    return word in TRUE_WORDS if word in TRUE_WORDS | FALSE_WORDS else None
