"""Toy latents, explained and judged through the real client by a judge on this machine."""

import asyncio
from collections import Counter
from pathlib import Path

from fake_judge import FakeJudge

from sae_bench import SCORERS
from sae_bench.autointerp.budget import Price, Spending, Tally
from sae_bench.autointerp.calls import Endpoint
from sae_bench.autointerp.client import Client
from sae_bench.autointerp.explainer import judge_latent
from sae_bench.autointerp.judges import Judges
from sae_bench.autointerp.settings import Budget

ALL = ("detection", "fuzzing", "simulation", "saebench_detection")


def ask(fake: FakeJudge, folder: Path, *latents, scorers=ALL, budget=None, concurrency=4, timeout=5.0, tally=None,
        model="toy", excerpts=10):  # fmt: skip
    """The latents with what the judge made of them."""
    endpoint = Endpoint(model, fake.base_url)
    spending = Spending(budget or Budget(), {"toy": Price(1.0, 10.0)})
    judges = Judges(endpoint, endpoint, [SCORERS[name]() for name in scorers], excerpts)

    async def run():
        client = Client(folder / "cache", spending, concurrency=concurrency, timeout=timeout)
        try:
            return await asyncio.gather(*(judge_latent(client, judges, one, tally or Tally()) for one in latents))
        finally:
            await client.close()

    return asyncio.run(run())


def scores_of(latent):
    return {name: score["value"] for name, score in latent["scores"].items()}


def failures_of(*latents):
    return Counter(answer["failure"] for latent in latents for answer in latent["answers"] if answer["failure"])
