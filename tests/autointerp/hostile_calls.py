"""Calls to a judge that means harm, and what is left of them."""

import asyncio

from hostile_judge import HostileJudge, completion

from sae_bench.autointerp.budget import Spending
from sae_bench.autointerp.calls import Call, Endpoint, Question
from sae_bench.autointerp.client import Client
from sae_bench.autointerp.explainer import read_explanation
from sae_bench.autointerp.settings import Budget

LIMIT = 80


def call_to(judge: HostileJudge, text: str = "what?") -> Call:
    messages = [{"role": "user", "content": text}]
    question = Question(messages, {"explanation": {"type": "string"}}, LIMIT, read_explanation, [0], logprobs=True)
    return Call(Endpoint("toy", judge.base_url), question)


def answers_of(judge, folder, texts=("what?",), *, budget=None, timeout=2.0, concurrency=8):
    """What comes of calls about some texts, and what was counted for them."""
    spending = Spending(budget or Budget(), {})

    async def run():
        client = Client(folder / "cache", spending, concurrency=concurrency, timeout=timeout)
        try:
            return await asyncio.gather(*(client.ask(call_to(judge, text)) for text in texts))
        finally:
            await client.close()

    return asyncio.run(run()), spending


def cached(folder) -> list[str]:
    return [path.read_text() for path in folder.rglob("*.json")]


def choice(**changed):
    return {"choices": [completion()["choices"][0] | changed], "usage": completion()["usage"]}
