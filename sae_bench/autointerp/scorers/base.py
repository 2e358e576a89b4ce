"""What a scorer is, and how answers of yes and no are marked.

Balanced accuracy is the mean of the shares of right answers among the true and among the false: whoever answers the
same to everything has one half, whatever was asked.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sae_bench.autointerp.client import Answer
from sae_bench.autointerp.examples import Excerpt, drawer
from sae_bench.autointerp.parse import booleans, cut_verdict, read_json, read_verdict
from sae_bench.autointerp.prompt import Message, Prompt, identifiers


@dataclass(frozen=True)
class View:
    """A latent as scorers see it: its excerpts, numbered as in its file, and its highest activation anywhere."""

    sae: str
    latent: int
    maximum: float
    excerpts: Sequence[Excerpt]

    def draw(self, *purpose: object) -> random.Random:
        return drawer(self.sae, self.latent, *purpose)

    def scoring(self, *kinds: str) -> list[int]:
        """Numbers of the excerpts of these kinds that are for scoring."""
        return [i for i, one in enumerate(self.excerpts) if one.use == "score" and one.kind in kinds]


@dataclass(frozen=True)
class Question:
    """One call to the judge: what it is told, the schema of the answer, and what reads it.

    `excerpts` are the numbers of those it is about, `truth` what is right for each.
    """

    messages: Sequence[Message]
    schema: Mapping[str, Any]
    max_tokens: int
    read: Callable[[str], Any]
    excerpts: Sequence[int]
    truth: Sequence[Any] = ()
    logprobs: bool = False
    read_cut: Callable[[str], Any] | None = None
    """Reads an answer that was cut off at `max_tokens`, where something of it is of use."""


@dataclass(frozen=True)
class Verdict:
    """A latent's score: None, with a note, where there is none. `n` counts what was answered."""

    value: float | None
    n: int
    counts: dict[str, int] = field(default_factory=dict)
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "n": self.n, "counts": self.counts, "note": self.note}


class Scorer(ABC):
    """Asks about excerpts that the explainer has not seen, and marks the answers."""

    name: ClassVar[str]

    @property
    def prompt(self) -> Prompt:
        return Prompt.load(self.name)

    @abstractmethod
    def questions(self, view: View, explanation: str, at_most: int) -> list[Question]:
        """What to ask; empty if the latent has too few excerpts for it.

        `at_most`: excerpts in one question, where the scorer does not decide that itself.
        """

    @abstractmethod
    def mark(self, questions: Sequence[Question], answers: Sequence[Answer]) -> Verdict:
        """The score that these answers come to."""


TOO_FEW = Verdict(None, 0, note="too few excerpts")


def count_answers(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, int]:
    """Right and wrong answers of yes and no, and excerpts that a failure left unanswered."""
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


def balanced_accuracy(questions: Sequence[Question], answers: Sequence[Answer]) -> Verdict:
    """(right among true + right among false) / 2."""
    if not questions:
        return TOO_FEW
    counts = count_answers(questions, answers)
    n_true = counts["true_positive"] + counts["false_negative"]
    n_false = counts["true_negative"] + counts["false_positive"]
    if not n_true or not n_false:
        return Verdict(None, n_true + n_false, counts, "undefined: no answers on one of the two sides")
    value = (counts["true_positive"] / n_true + counts["true_negative"] / n_false) / 2
    return Verdict(value, n_true + n_false, counts)


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
        schema=object_schema({name: {"type": "boolean"} for name in names}),
        max_tokens=20 if one else 32 + 16 * len(names),
        read=lambda text: read_verdict(text, names[0]) if one else read_json(text, booleans(names)),
        read_cut=(lambda text: cut_verdict(text, names[0])) if one else None,
        excerpts=numbers,
        truth=truth,
    )


def portions(numbers: list[int], size: int, draw: random.Random) -> Iterator[list[int]]:
    """The numbers in random order, in portions of about equal size and at most `size`."""
    draw.shuffle(numbers)
    n = -(-len(numbers) // size)
    yield from (numbers[i::n] for i in range(n))


def object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
