"""Having latents explained and the explanations scored: first what each is, then, by every scorer, whether it is so.

All latents of an SAE are under way together, as many calls at a time as the client allows; each latent's file is
written as soon as its last answer is there.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sae_bench.autointerp.budget import Spending, Tally
from sae_bench.autointerp.calls import Answer, Call, Endpoint, Question
from sae_bench.autointerp.client import Client
from sae_bench.autointerp.examples import LatentExamples
from sae_bench.autointerp.judges import EXPLAIN, EXPLAIN_PROMPT, Judges
from sae_bench.autointerp.latents import LatentFile, examples_of
from sae_bench.autointerp.parse import Unreadable, read_json, sentence, whole_sentence
from sae_bench.autointerp.scorer import TOO_FEW, LatentScore
from sae_bench.evaluation.task import JudgedLatent

MAX_STRENGTH = 10
"""Activations are shown to the explainer as whole numbers up to this."""

SHOWN_SHARE = 0.3
"""Of an excerpt's highest activation: weaker tokens are not named to the explainer, whom long lists lead astray (the
share that delphi 0.1.3 marks tokens from)."""

MIN_REPEATED_WORDS = 5
"""So many words in a row of the explainer's prompt are no explanation; fewer may be one by accident."""


def explain_question(latent: LatentExamples, at_most: int) -> Question:
    """What the explainer is asked: examples with their active tokens, strengths cut to whole numbers up to 10.

    Of a latent of two signs the strengths below zero stay so. Of more examples than `at_most` the strongest are half.
    """
    numbers = [i for i, example in enumerate(latent.examples) if example.use == "explain"]
    if len(numbers) > at_most:
        numbers = _strongest_and_others(latent, numbers, at_most)
    excerpts = []
    for example in (latent.examples[i] for i in numbers):
        pairs = zip(example.tokens, example.activations, strict=True)
        shown = [(token, value) for token, value in pairs if abs(value) >= SHOWN_SHARE * example.peak]
        active = [[token, int(MAX_STRENGTH * value / latent.maximum)] for token, value in shown]
        excerpts.append({"text": example.text, "active": active})
    return Question(
        messages=EXPLAIN_PROMPT.messages({"excerpts": excerpts}),
        properties={"explanation": {"type": "string"}},
        max_tokens=80,
        read=read_explanation,
        read_cut=lambda text: _own_words(whole_sentence(text)),
        examples=numbers,
    )


def _strongest_and_others(latent: LatentExamples, numbers: list[int], at_most: int) -> list[int]:
    """Half of them by their peak, and of the weaker ones evenly by rank."""
    by_peak = sorted(numbers, key=lambda i: -latent.examples[i].peak)
    n_top = -(-at_most // 2)
    rest, n_rest = by_peak[n_top:], at_most - n_top
    return by_peak[:n_top] + [rest[(2 * i + 1) * len(rest) // (2 * n_rest)] for i in range(n_rest)]


def read_explanation(text: str) -> str:
    """The explanation: as JSON, or, from a model that cannot write it, the text as it is."""
    try:
        return _own_words(read_json(text, sentence))
    except Unreadable as error:
        plain = " ".join(text.split())
        if error.kind == "unparsable" and plain and not {"{", "<"} & set(plain):
            return _own_words(plain[:400])
        raise


def _own_words(explanation: str) -> str:
    """The explanation, unless it repeats the question, or the answer of its demonstration, as small models do."""
    said = _words(explanation)
    if not said.strip():
        raise Unreadable("unparsable", "an explanation without a word")
    question = len(said.split()) >= MIN_REPEATED_WORDS and said in _words(EXPLAIN_PROMPT.text)
    shown = (read_json(answer, sentence) for _, answer in EXPLAIN_PROMPT.demonstrations)
    if question or any(_words(answer) in said for answer in shown):
        raise Unreadable("unparsable", "the question said back, not an answer")
    return explanation


def _words(text: str) -> str:
    """The words alone, with a space on either side."""
    return " ".join(["", *re.findall(r"\w+", text.lower()), ""])


async def judge_latent(client: Client, judges: Judges, latent: LatentFile, tally: Tally) -> LatentFile:
    """The latent's file with explanation, answers and scores."""
    examples = examples_of(latent)
    question = explain_question(examples, judges.examples_explained)
    explained = await _ask(client, judges.explainer, question, tally)
    answers = [_record(EXPLAIN, question, explained)]
    scores: dict[str, LatentScore] = {}
    told: dict[str, Answer] = {}  # what two scorers ask alike is asked once, and stands under the first of them
    for scorer in judges.scorers:
        if explained.failure is not None:
            scores[scorer.name] = LatentScore(None, 0, note=f"no explanation: {explained.failure}")
            continue
        questions = scorer.questions(examples, explained.value, judges.examples_per_question)
        calls = [Call(judges.judge, question) for question in questions]
        new = {
            call.digest: question for call, question in zip(calls, questions, strict=True) if call.digest not in told
        }
        replies = await asyncio.gather(*(_ask(client, judges.judge, one, tally) for one in new.values()))
        told |= dict(zip(new, replies, strict=True))
        answers += [_record(scorer.name, *pair) for pair in zip(new.values(), replies, strict=True)]
        scores[scorer.name] = scorer.score(questions, [told[call.digest] for call in calls]) if questions else TOO_FEW
    return latent | {
        "explanation": explained.value,
        "explainer": judges.explainer.model,
        "answers": answers,
        "scores": {name: asdict(score) for name, score in scores.items()},
    }


async def _ask(client: Client, endpoint: Endpoint, question: Question, tally: Tally) -> Answer:
    answer = await client.ask(Call(endpoint, question))
    tally.add(endpoint.model, answer.usage, cached=answer.cached)
    return answer


def _record(scorer: str, question: Question, answer: Answer) -> dict[str, Any]:
    return {
        "scorer": scorer,
        "role": "explain" if scorer == EXPLAIN else "score",
        "example": list(question.examples),
        "answer": answer.text,
        "failure": answer.failure,
        "cut": answer.cut,
    }


def judged(latent: LatentFile) -> JudgedLatent:
    """What a task is told of a latent."""
    scores: Mapping[str, Mapping[str, Any]] = latent["scores"]
    lost = (answer["failure"] or ("cut_short" if answer["cut"] else None) for answer in latent["answers"])
    return JudgedLatent(
        latent=latent["latent"],
        scores={name: score["value"] for name, score in scores.items()},
        notes={name: score["note"] for name, score in scores.items() if score["note"]},
        failures=dict(Counter(filter(None, lost))),
    )


def cost_of(tally: Tally, spending: Spending) -> dict[str, Any]:
    """Tokens and dollars behind a record: of all its answers, whenever they were paid for."""
    return {
        "calls": tally.n_calls,
        "from_cache": tally.n_cached,
        **asdict(tally.total),
        "dollars": spending.dollars(tally.by_model),
    }
