"""Having latents explained and the explanations scored: first what each is, then, by every scorer, whether it is so.

All latents of an SAE are under way together, as many calls at a time as the client allows; each latent's file is
written as soon as its last answer is there.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sae_bench.autointerp.budget import Spending, Tally
from sae_bench.autointerp.calls import Answer, Call, Endpoint, Question
from sae_bench.autointerp.client import Client
from sae_bench.autointerp.examples import Example, LatentExamples
from sae_bench.autointerp.judges import EXPLAIN, EXPLAIN_PROMPT, Judges
from sae_bench.autointerp.latents import LatentFile, examples_of
from sae_bench.autointerp.parse import Unreadable, read_json, sentence, whole_sentence
from sae_bench.autointerp.scorer import object_schema
from sae_bench.evaluation.task import JudgedLatent

MAX_STRENGTH = 10
"""Activations are shown to the explainer as whole numbers up to this."""

MIN_REPEATED_WORDS = 5
"""So many words in a row of the explainer's prompt are no explanation; fewer may be one by accident."""

PLACEHOLDER = "words that have to do with something of about this length, a sentence for the estimate of what it costs"


def explain_question(latent: LatentExamples) -> Question:
    """What the explainer is asked: examples with their active tokens, strengths floored to whole numbers of 10."""
    numbers = [i for i, example in enumerate(latent.examples) if example.use == "explain"]
    shown = [_shown(latent.examples[i], latent.maximum) for i in numbers]
    return Question(
        messages=EXPLAIN_PROMPT.messages({"excerpts": shown}),
        schema=object_schema({"explanation": {"type": "string"}}),
        max_tokens=80,
        read=read_explanation,
        read_cut=lambda text: _own_words(whole_sentence(text)),
        examples=numbers,
    )


def _shown(example: Example, maximum: float) -> dict[str, Any]:
    active = [
        [token, int(MAX_STRENGTH * value / maximum)]
        for token, value in zip(example.tokens, example.activations, strict=True)
        if value > 0
    ]
    return {"text": example.text, "active": active}


def read_explanation(text: str) -> str:
    """The explanation: as JSON, or, from a model that cannot write it, the text as it is."""
    try:
        return _own_words(read_json(text, sentence()))
    except Unreadable as error:
        plain = " ".join(text.split())
        if error.kind == "unparsable" and plain and not {"{", "<"} & set(plain):
            return _own_words(plain[:400])
        raise


def _own_words(explanation: str) -> str:
    """The explanation, unless it repeats the question, or the answer of its demonstration, as small models do."""
    said = _words(explanation)
    question = len(said.split()) >= MIN_REPEATED_WORDS and said in _words(EXPLAIN_PROMPT.text)
    if question or any(_words(answer) in said for _, answer in EXPLAIN_PROMPT.demonstrations):
        raise Unreadable("unparsable", "the question said back, not an answer")
    return explanation


def _words(text: str) -> str:
    """The words alone, with a space on either side."""
    return " ".join(["", *re.findall(r"\w+", text.lower()), ""])


async def judge_latent(client: Client, judges: Judges, latent: LatentFile, tally: Tally) -> LatentFile:
    """The latent's file with explanation, answers and scores."""
    examples = examples_of(latent)
    question = explain_question(examples)
    explained = await _ask(client, judges.explainer, question, tally)
    answers = [_record(EXPLAIN, "explain", question, explained)]
    scores: dict[str, dict[str, Any]] = {}
    for scorer in judges.scorers:
        if explained.failure is not None:
            note = f"no explanation: {explained.failure}"
            scores[scorer.name] = {"value": None, "n": 0, "counts": {}, "note": note}
            continue
        questions = scorer.questions(examples, explained.value, judges.examples_per_question)
        replies = await asyncio.gather(*(_ask(client, judges.judge, one, tally) for one in questions))
        answers += [_record(scorer.name, "score", *pair) for pair in zip(questions, replies, strict=True)]
        scores[scorer.name] = scorer.score(questions, replies).to_json()
    return latent | {
        "explanation": explained.value,
        "explainer": judges.explainer.model,
        "answers": answers,
        "scores": scores,
    }


async def _ask(client: Client, endpoint: Endpoint, question: Question, tally: Tally) -> Answer:
    answer = await client.ask(Call(endpoint, question))
    tally.add(endpoint.model, answer.usage, cached=answer.cached)
    return answer


def _record(scorer: str, role: str, question: Question, answer: Answer) -> dict[str, Any]:
    return {
        "scorer": scorer,
        "role": role,
        "example": list(question.examples),
        "answer": answer.text,
        "failure": answer.failure,
        "cut": answer.cut,
    }


def judged(latent: LatentFile) -> JudgedLatent:
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


def expected_calls(judges: Judges, latent: LatentFile) -> Iterator[Call]:
    """About the calls that a latent will take; how it will be explained is not known yet."""
    examples = examples_of(latent)
    yield Call(judges.explainer, explain_question(examples))
    for scorer in judges.scorers:
        for question in scorer.questions(examples, PLACEHOLDER, judges.examples_per_question):
            yield Call(judges.judge, question)


def estimate(client: Client, judges: Judges, latents: Iterable[LatentFile]) -> str:
    """What judging these latents is expected to take, before the first call."""
    n_calls, new = 0, Tally()
    for latent in latents:
        for call in expected_calls(judges, latent):
            n_calls += 1
            if not client.is_kept(call):
                new.add(call.endpoint.model, call.most)
    dollars = client.spending.dollars(new.by_model)
    price = "a price that nobody gave" if dollars is None else f"${dollars:.2f}"
    return (
        f"judge {judges.judge.model}: {n_calls:,} calls, at most about {new.total.prompt_tokens:,} tokens to read and "
        f"{new.total.completion_tokens:,} to write, {price}; less what is cached"
    )


def cost_of(tally: Tally, spending: Spending) -> dict[str, Any]:
    """Tokens and dollars behind a record: of all its answers, whenever they were paid for."""
    return {
        "calls": tally.n_calls,
        "from_cache": tally.n_cached,
        "prompt_tokens": tally.total.prompt_tokens,
        "completion_tokens": tally.total.completion_tokens,
        "dollars": spending.dollars(tally.by_model),
    }
