"""Scorers put explanations to the test: they ask about examples that the explainer has not seen, and score the answers.

Each is one file in `scorers/`, or a plugin file, that holds a class decorated with `@register_scorer("name")`: prompt,
description, and what to ask; `score` is balanced accuracy unless it says otherwise. All else, from the flag to the
board, follows from that. This module has what scorers are written with.

Balanced accuracy is the mean of the shares of right answers among the true and among the false: whoever answers the
same to everything has one half, whatever was asked. `Ranked` scores the same answers by how likely the judge finds
"true": a judge that says yes to everything may still find it likelier where it is right.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, Literal

from scipy import stats

from sae_bench.autointerp.calls import Answer as Answer
from sae_bench.autointerp.calls import Question as Question
from sae_bench.autointerp.examples import Example as Example
from sae_bench.autointerp.examples import LatentExamples as LatentExamples
from sae_bench.autointerp.likelihood import likelihood_of_true
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


class Ranked(Scorer):
    """Scores yes or no by the area under the ROC curve of the judge's probability of "true": chance is .5.

    That is the share of pairs, one true and one false, in which "true" is likelier of the true one, ties as a half; of
    answers that are certain it is balanced accuracy. It asks for no threshold, so that a judge's leaning to yes or no
    costs nothing.
    """

    def score(self, questions: Sequence[Question], answers: Sequence[Answer]) -> LatentScore:
        """Undefined where an answer comes without log-probabilities: what is certain ranks with nothing."""
        likely: dict[bool, list[float | None]] = {True: [], False: []}
        unanswered = 0
        for question, answer in zip(questions, answers, strict=True):
            if answer.failure is not None:
                unanswered += len(question.truth)
                continue
            for truth, found in zip(question.truth, likelihood_of_true(answer.value, answer.tokens), strict=True):
                likely[truth].append(found)
        known = {truth: [one for one in ones if one is not None] for truth, ones in likely.items()}
        n = len(likely[True]) + len(likely[False])
        n_known = len(known[True]) + len(known[False])
        counts = {"true": len(likely[True]), "false": len(likely[False]), "unanswered": unanswered,
                  "with_logprobs": n_known}  # fmt: skip
        if not counts["true"] or not counts["false"]:
            return LatentScore(None, n, counts, "undefined: no answers on one of the two sides")
        if n_known < n:
            which = "some answers" if n_known else "the judge's answers"
            return LatentScore(None, n, counts, f"undefined: {which} have no log-probabilities of true and false")
        ranks = stats.rankdata(known[True] + known[False])[: counts["true"]]
        wins = float(ranks.sum()) - counts["true"] * (counts["true"] + 1) / 2  # Mann and Whitney's U
        return LatentScore(wins / (counts["true"] * counts["false"]), n, counts)


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
    prompt: Prompt,
    explanation: str,
    excerpts: Sequence[Any],
    numbers: Sequence[int],
    truth: Sequence[bool],
    among: object = None,
) -> Question:
    """A question about some excerpts, to be answered with true or false under the identifier of each.

    About one alone the word itself is the answer: there is nothing that it could be mistaken for. `among`: what
    `Prompt.messages` takes.
    """
    names = identifiers(excerpts)
    one = len(names) == 1
    return Question(
        messages=prompt.messages(
            {"explanation": explanation, "excerpts": dict(zip(names, excerpts, strict=True))},
            one=one,
            among=among,
            count=len(names),
            # Not an answer: whoever says it back has given none.
            example="{" + ", ".join(f'"{name}": true or false' for name in names[:2]) + ", ...}",
        ),
        properties={} if one and prompt.one else {name: {"type": "boolean"} for name in names},
        max_tokens=20 if one else 32 + 16 * len(names),
        read=lambda text: read_boolean(text, names[0]) if one else read_json(text, booleans, names),
        read_cut=(lambda text: read_cut_boolean(text, names[0])) if one else None,
        examples=numbers,
        truth=truth,
        logprobs=True,
    )


def yes_or_no_in_portions(
    prompt: Prompt,
    explanation: str,
    excerpts: Mapping[int, Any],
    right: Callable[[int], bool],
    at_most: int,
    random: Random,
) -> list[Question]:
    """Questions about all excerpts, known by their numbers, in random order and at most so many in one."""
    among = [explanation, list(excerpts.values())]
    return [
        yes_or_no(prompt, explanation, [excerpts[i] for i in numbers], numbers, [right(i) for i in numbers], among)
        for numbers in portions(list(excerpts), at_most, random)
    ]


def portions(numbers: list[int], size: int, random: Random) -> Iterator[list[int]]:
    """The numbers in random order, in portions of about equal size and at most `size`."""
    random.shuffle(numbers)
    n = -(-len(numbers) // size)
    yield from (numbers[i::n] for i in range(n))
