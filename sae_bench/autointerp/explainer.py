"""Asking about latents: first what each is, then, by every scorer, whether that is true.

All latents of an SAE are under way together, as many calls at a time as the judge allows; each latent's file is written
as soon as its last answer is there.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sae_bench.autointerp.budget import Usage
from sae_bench.autointerp.client import Answer, Call, Endpoint, Judge
from sae_bench.autointerp.examples import Excerpt
from sae_bench.autointerp.judges import EXPLAIN, Panel
from sae_bench.autointerp.latents import Latent, excerpts_of
from sae_bench.autointerp.parse import Unreadable, read_json, sentence, whole_sentence
from sae_bench.autointerp.prompt import Prompt
from sae_bench.autointerp.scorers.base import Question, View, object_schema
from sae_bench.autointerp.scorers.known import SCORERS
from sae_bench.evaluation.task import JudgedLatent

STRONGEST = 10
"""Activations are shown to the explainer as whole numbers up to this."""

LEAST_SAID_BACK = 5
"""So many words in a row of the explainer's prompt are no explanation; fewer may be one by chance."""

PLACEHOLDER = "words that have to do with something of about this length, a sentence for the estimate of what it costs"


@dataclass
class Tally:
    """What the answers for one SAE took: all of them, and those that were paid for now."""

    by_model: dict[str, Usage]
    n_calls: int = 0
    n_cached: int = 0

    def add(self, model: str, answer: Answer) -> None:
        self.by_model[model] = self.by_model.get(model, Usage()) + answer.usage
        self.n_calls += 1
        self.n_cached += answer.cached


def view_of(latent: Latent) -> View:
    return View(latent["sae"], latent["latent"], latent["max"], excerpts_of(latent))


def explain_question(view: View) -> Question:
    """What the explainer is asked: excerpts with their active tokens, strengths floored to whole numbers of 10."""
    numbers = [i for i, excerpt in enumerate(view.excerpts) if excerpt.use == "explain"]
    shown = [_shown(view.excerpts[i], view.maximum) for i in numbers]
    return Question(
        messages=Prompt.load(EXPLAIN).messages({"excerpts": shown}),
        schema=object_schema({"explanation": {"type": "string"}}),
        max_tokens=80,
        read=read_explanation,
        read_cut=lambda text: _own_words(whole_sentence(text)),
        excerpts=numbers,
    )


def _shown(excerpt: Excerpt, maximum: float) -> dict[str, Any]:
    active = [
        [token, int(STRONGEST * value / maximum)]
        for token, value in zip(excerpt.tokens, excerpt.activations, strict=True)
        if value > 0
    ]
    return {"text": excerpt.text, "active": active}


def read_explanation(text: str) -> str:
    """The explanation: as JSON, or, from a judge that cannot write it, the text as it is."""
    try:
        return _own_words(read_json(text, sentence()))
    except Unreadable as error:
        plain = " ".join(text.split())
        if error.kind == "unparsable" and plain and not {"{", "<"} & set(plain):
            return _own_words(plain[:400])
        raise


def _own_words(explanation: str) -> str:
    """The explanation, unless it is the question said back, or the answer of its example, as small models do."""
    prompt = Prompt.load(EXPLAIN)
    said = _words(explanation)
    question = len(said.split()) >= LEAST_SAID_BACK and said in _words(prompt.text)
    if question or any(_words(answer) in said for _, answer in prompt.examples):
        raise Unreadable("unparsable", "the question said back, not an answer")
    return explanation


def _words(text: str) -> str:
    """The words alone, with a space on either side."""
    return " ".join(["", *re.findall(r"\w+", text.lower()), ""])


async def ask_about(judge: Judge, panel: Panel, latent: Latent, tally: Tally) -> Latent:
    """The latent's file with explanation, answers and scores."""
    view = view_of(latent)
    question = explain_question(view)
    explained = await _ask(judge, panel.explainer, question, tally)
    answers = [_record(EXPLAIN, "explain", question, explained)]
    scores: dict[str, dict[str, Any]] = {}
    for name in panel.scorers:
        scorer = SCORERS[name]
        if explained.failure is not None:
            scores[name] = {"value": None, "n": 0, "counts": {}, "note": f"no explanation: {explained.failure}"}
            continue
        questions = scorer.questions(view, explained.value, panel.excerpts_per_question)
        replies = await asyncio.gather(*(_ask(judge, panel.scorer, one, tally) for one in questions))
        answers += [_record(name, "score", *pair) for pair in zip(questions, replies, strict=True)]
        scores[name] = scorer.mark(questions, replies).to_json()
    return latent | {
        "explanation": explained.value,
        "explainer": panel.explainer.model,
        "answers": answers,
        "scores": scores,
    }


async def _ask(judge: Judge, endpoint: Endpoint, question: Question, tally: Tally) -> Answer:
    answer = await judge.ask(call_of(endpoint, question))
    tally.add(endpoint.model, answer)
    return answer


def call_of(endpoint: Endpoint, question: Question) -> Call:
    return Call(
        endpoint, question.messages, question.schema, question.max_tokens, question.read, question.read_cut,
        logprobs=question.logprobs,
    )  # fmt: skip


def _record(scorer: str, role: str, question: Question, answer: Answer) -> dict[str, Any]:
    return {
        "scorer": scorer,
        "role": role,
        "example": list(question.excerpts),
        "answer": answer.text,
        "failure": answer.failure,
        "cut": answer.cut,
    }


def judged(latent: Latent) -> JudgedLatent:
    """What a task is told of a latent."""
    scores: Mapping[str, Mapping[str, Any]] = latent["scores"]
    return JudgedLatent(
        latent=latent["latent"],
        scores={name: score["value"] for name, score in scores.items()},
        notes={name: score["note"] for name, score in scores.items() if score["note"]},
        failures=dict(Counter(filter(None, map(_lost, latent["answers"])))),
    )


def _lost(answer: Mapping[str, Any]) -> str | None:
    """What an answer is counted as among those that failed or were cut short."""
    return answer["failure"] or ("cut_short" if answer["cut"] else None)


def expected_calls(panel: Panel, latent: Latent) -> Iterator[Call]:
    """About the calls that a latent will take; what they say of it is not known yet."""
    view = view_of(latent)
    yield call_of(panel.explainer, explain_question(view))
    for name in panel.scorers:
        for question in SCORERS[name].questions(view, PLACEHOLDER, panel.excerpts_per_question):
            yield call_of(panel.scorer, question)
