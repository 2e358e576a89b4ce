"""Scorers put explanations to the test: they ask about examples that the explainer has not seen, and score the answers.

Each is one file in `scorers/`, or a plugin file, that holds a class decorated with `@register_scorer("name")`: prompt,
description, and what to ask; `score` is balanced accuracy unless it says otherwise. All else, from the flag to the
board, follows from that. This module has what scorers are written with.

Balanced accuracy is the mean of the shares of right answers among the true and among the false: whoever answers the
same to everything has one half, whatever was asked.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, Literal

from sae_bench.autointerp.calls import Answer as Answer
from sae_bench.autointerp.calls import Question as Question
from sae_bench.autointerp.examples import Example as Example
from sae_bench.autointerp.examples import LatentExamples as LatentExamples
from sae_bench.autointerp.parse import Unreadable as Unreadable
from sae_bench.autointerp.parse import booleans, read_boolean, read_cut_boolean, read_json
from sae_bench.autointerp.prompt import Prompt as Prompt
from sae_bench.autointerp.prompt import identifiers
from sae_bench.records.schema import Metric


@dataclass(frozen=True)
class LatentScore:
    """How well a latent's explanation did: None, with a note, where there is no score. `n` counts what was answered."""

    value: float | None
    n: int
    counts: dict[str, int] = field(default_factory=dict)
    note: str | None = None


class Scorer(ABC):
    """Base of all scorers. The mean of its scores over latents is a metric of its name."""

    name: ClassVar[str]
    """Short name, set by registration."""
    prompt: ClassVar[Prompt]
    description: ClassVar[str]
    """What a score is."""
    better: ClassVar[Literal["up", "down"] | None] = "up"
    unit: ClassVar[str] = ""
    caption: ClassVar[str] = ""
    """A sentence below the board: what a reader has to know of the numbers, such as what is scored for nothing."""

    @property
    def metric(self) -> Metric:
        """What tasks report of it."""
        return Metric(self.name, self.better, self.unit, self.description, headline=True)

    @abstractmethod
    def questions(self, latent: LatentExamples, explanation: str, at_most: int) -> list[Question]:
        """What to ask; empty if the latent has too few examples for it.

        `at_most`: examples in one question, where the scorer does not decide that itself.
        """

    def score(self, questions: Sequence[Question], answers: Sequence[Answer]) -> LatentScore:
        """What these answers come to; it is not called without any. Here (right among true + right among false) / 2."""
        counts = count_answers(questions, answers)
        n_true = counts["true_positive"] + counts["false_negative"]
        n_false = counts["true_negative"] + counts["false_positive"]
        if not n_true or not n_false:
            return LatentScore(None, n_true + n_false, counts, "undefined: no answers on one of the two sides")
        value = (counts["true_positive"] / n_true + counts["true_negative"] / n_false) / 2
        return LatentScore(value, n_true + n_false, counts)


TOO_FEW = LatentScore(None, 0, note="too few excerpts")


def count_answers(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, int]:
    """Right and wrong answers of yes and no, and examples that a failure left unanswered."""
    counts = {"true_positive": 0, "false_negative": 0, "true_negative": 0, "false_positive": 0, "unanswered": 0}
    names = {(True, True): "true_positive", (True, False): "false_negative", (False, False): "true_negative",
             (False, True): "false_positive"}  # fmt: skip
    for question, answer in zip(questions, answers, strict=True):
        if answer.failure is not None:
            counts["unanswered"] += len(question.truth)
            continue
        for truth, said in zip(question.truth, answer.value.values(), strict=True):
            counts[names[truth, said]] += 1
    return counts


def yes_or_no(
    prompt: Prompt, explanation: str, excerpts: Sequence[Any], numbers: Sequence[int], truth: Sequence[bool]
) -> Question:
    """A question about some excerpts, to be answered with true or false under the identifier of each.

    About one alone the word itself is answer enough: there is nothing that it could be mistaken for.
    """
    names = identifiers(excerpts)
    one = len(names) == 1
    return Question(
        messages=prompt.messages(
            {"explanation": explanation, "excerpts": dict(zip(names, excerpts, strict=True))},
            one=one,
            count=len(names),
            # Not an answer: whoever says it back has given none.
            example="{" + ", ".join(f'"{name}": true or false' for name in names[:2]) + ", ...}",
        ),
        properties={name: {"type": "boolean"} for name in names},
        max_tokens=20 if one else 32 + 16 * len(names),
        read=lambda text: read_boolean(text, names[0]) if one else read_json(text, booleans, names),
        read_cut=(lambda text: read_cut_boolean(text, names[0])) if one else None,
        examples=numbers,
        truth=truth,
    )


def portions(numbers: list[int], size: int, random: Random) -> Iterator[list[int]]:
    """The numbers in random order, in portions of about equal size and at most `size`."""
    random.shuffle(numbers)
    n = -(-len(numbers) // size)
    yield from (numbers[i::n] for i in range(n))
