"""Simulation (Bills et al. 2023): what would the latent do on this text, if all one knew were the explanation?

The judge predicts a strength from 0 to 10 for every token of an excerpt at once; where the endpoint gives
log-probabilities, the prediction is the expected value over the numbers it considered. The score is Pearson's
correlation with the true activations over all tokens of all excerpts together. A constant prediction has none and is
recorded so.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from sae_bench.autointerp.client import Answer
from sae_bench.autointerp.parse import read_json, strengths
from sae_bench.autointerp.scorers.base import TOO_FEW, Question, Scorer, Verdict, View, object_schema

N_FIRING, N_SILENT = 5, 5


class Simulation(Scorer):
    name = "simulation"

    def questions(self, view: View, explanation: str, at_most: int) -> list[Question]:
        draw = view.draw(self.name)
        firing, silent = view.scoring("decile"), view.scoring("silent", "hard")
        if not firing or not silent:
            return []
        chosen = draw.sample(firing, min(N_FIRING, len(firing))) + draw.sample(silent, min(N_SILENT, len(silent)))
        return [self._question(view, explanation, i) for i in chosen]

    def _question(self, view: View, explanation: str, number: int) -> Question:
        excerpt = view.excerpts[number]
        n = len(excerpt.tokens)
        return Question(
            messages=self.prompt.messages({"explanation": explanation, "tokens": list(excerpt.tokens)}, count=n),
            schema=object_schema({"strengths": {"type": "array", "items": {"type": "integer"}}}),
            max_tokens=32 + 4 * n,
            read=lambda text: read_json(text, strengths(n)),
            excerpts=[number],
            truth=list(excerpt.activations),
            logprobs=True,
        )

    def mark(self, questions: Sequence[Question], answers: Sequence[Answer]) -> Verdict:
        if not questions:
            return TOO_FEW
        answered = [pair for pair in zip(questions, answers, strict=True) if pair[1].failure is None]
        truth = np.array([value for question, _ in answered for value in question.truth])
        predicted = np.array([value for _, answer in answered for value in expected(answer)])
        counts = {
            "tokens": len(truth),
            "unanswered": sum(len(q.truth) for q, a in zip(questions, answers, strict=True) if a.failure is not None),
            "with_logprobs": sum(bool(answer.tokens) for _, answer in answered),
        }
        for name, values in (("activation", truth), ("prediction", predicted)):
            if not len(values) or np.ptp(values) == 0:
                return Verdict(None, len(values), counts, f"undefined: constant {name}" if len(values) else "no answer")
        return Verdict(float(np.corrcoef(truth, predicted)[0, 1]), len(truth), counts)


def expected(answer: Answer) -> list[float]:
    """The prediction, number by number: expected where the token that it is has alternatives, else as it was said."""
    numbers: list[float] = list(answer.value)
    places = _number_tokens(answer.tokens)
    if len(places) != len(numbers):
        return numbers
    return [said if likely is None else _mean(likely, said) for said, likely in zip(numbers, places, strict=True)]


def _number_tokens(tokens: Sequence[tuple[str, Mapping[str, float]]]) -> list[Mapping[str, float] | None]:
    """For each number in the text the alternatives to its token; None where it is not one token by itself."""
    text = "".join(token for token, _ in tokens)
    starts, at = {}, 0
    for token, likely in tokens:
        starts[at] = (token, likely)
        at += len(token)
    found: list[Mapping[str, float] | None] = []
    for number in re.finditer(r"\d+(?:\.\d+)?", text):
        # A token may carry the space in front of its number.
        token, likely = starts.get(number.start(), starts.get(number.start() - 1, ("", {})))
        found.append(likely if token.strip() == number[0] and likely else None)
    return found


def _mean(likely: Mapping[str, float], said: float) -> float:
    weights = {
        int(token): math.exp(logprob)
        for token, logprob in likely.items()
        if re.fullmatch(r"\s*(?:\d|10)\s*", token)
    }  # fmt: skip
    total = sum(weights.values())
    return sum(value * weight for value, weight in weights.items()) / total if total > 0 else said
