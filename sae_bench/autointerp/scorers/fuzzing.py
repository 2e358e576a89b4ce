"""Fuzzing (Paulo et al. 2024): are the marked tokens the ones that the latent fires on?

In half of the firing excerpts the active tokens are marked, in the other half as many silent ones. All excerpts contain
what the explanation describes, so that only the place can tell them apart; balanced accuracy.
"""

from collections.abc import Sequence
from itertools import groupby

from sae_bench.autointerp.client import Answer
from sae_bench.autointerp.examples import Excerpt
from sae_bench.autointerp.scorers.base import Question, Scorer, Verdict, View, balanced_accuracy, portions, yes_or_no

Part = str | dict[str, str]


class Fuzzing(Scorer):
    name = "fuzzing"

    def questions(self, view: View, explanation: str, at_most: int) -> list[Question]:
        draw = view.draw(self.name)
        active = view.scoring("decile")
        # An excerpt without silent tokens can only be marked rightly.
        can_lie = [i for i in active if silent_tokens(view.excerpts[i])]
        lies = set(draw.sample(can_lie, min(len(can_lie), len(active) // 2)))
        if not lies:
            return []
        marked = {}
        for i in active:
            excerpt = view.excerpts[i]
            tokens = active_tokens(excerpt)
            if i in lies:
                silent = silent_tokens(excerpt)
                tokens = draw.sample(silent, min(len(tokens), len(silent)))
            marked[i] = mark_tokens(excerpt, set(tokens))
        return [
            yes_or_no(self.prompt, explanation, [marked[i] for i in numbers], numbers, [i not in lies for i in numbers])
            for numbers in portions(list(active), at_most, draw)
        ]

    def mark(self, questions: Sequence[Question], answers: Sequence[Answer]) -> Verdict:
        return balanced_accuracy(questions, answers)


def active_tokens(excerpt: Excerpt) -> list[int]:
    """Places of the tokens that the latent fires on and that can be seen."""
    return [i for i, value in enumerate(excerpt.activations) if value > 0 and excerpt.tokens[i].strip()] or [
        i for i, value in enumerate(excerpt.activations) if value > 0
    ]


def silent_tokens(excerpt: Excerpt) -> list[int]:
    """Places of the tokens that the latent does not fire on, white space apart: marking it would show the lie."""
    return [i for i, value in enumerate(excerpt.activations) if not value > 0 and excerpt.tokens[i].strip()]


def mark_tokens(excerpt: Excerpt, places: set[int]) -> list[Part]:
    """The text in parts, neighbouring tokens joined; the marked parts say so."""
    parts: list[Part] = []
    for marked, run in groupby(enumerate(excerpt.tokens), key=lambda pair: pair[0] in places):
        text = "".join(token for _, token in run)
        parts.append({"marked": text} if marked else text)
    return parts
