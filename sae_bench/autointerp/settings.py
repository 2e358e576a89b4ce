"""What is asked of automated interpretability: how many latents, on what text, and who judges.

These settings decide no weight and no other metric, so a run's identity leaves them out: the same command with a judge
added makes the records that the judge is for, and nothing else again. What they do decide is kept in those records.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sae_bench.parsing import Count, parse_count

DEFAULT_SCORERS = ("detection", "fuzzing")
DEFAULT_LATENTS = 100
DEFAULT_TOKENS = {"paper": 2_000_000, "short": 16_384}


@dataclass(frozen=True)
class Budget:
    """The most that the judge may cost in one command."""

    dollars: float | None = None
    tokens: int | None = None


def parse_budget(text: str) -> Budget:
    """Read "$5" or "5usd" as dollars, "2M" as tokens."""
    match = re.fullmatch(r"\s*(?:\$\s*([\d.]+)|([\d.]+)\s*usd)\s*", text, flags=re.IGNORECASE)
    try:
        if match:
            return Budget(dollars=float(match[1] or match[2]))
        return Budget(tokens=parse_count(text))
    except ValueError:
        raise ValueError(f'"{text}" is no budget: write $5 for dollars, or 2M for tokens') from None


def _checked_budget(text: object) -> str:
    parse_budget(str(text))
    return str(text)


class JudgeConfig(BaseModel):
    """The settings of a run that its identity leaves out; without `judge_model` nobody judges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_latents: Count | None = None
    """Latents of each SAE to collect examples of; none named: 100 if there is a judge, else none."""
    interp_tokens: Count | None = None
    """Held-out tokens after those of the evaluation; none named: 2,000,000 or, in the preset `short`, 16,384."""
    hard_negatives: bool = False
    chance: bool = False
    scorers: tuple[str, ...] = DEFAULT_SCORERS
    judge_model: str | None = None
    judge_base_url: str | None = None
    explainer_model: str | None = None
    explainer_base_url: str | None = None
    judge_excerpts: Annotated[int, Field(gt=0)] = 10
    """The most examples that one question of detection or fuzzing is about."""
    judge_budget: Annotated[str, BeforeValidator(_checked_budget)] | None = None
    judge_prices: str | None = None
    judge_concurrency: Annotated[int, Field(gt=0)] = 8
    judge_timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for one request; the client tries again as often as `client.MAX_RETRIES` says."""

    @property
    def collects(self) -> bool:
        """Whether examples are collected at all."""
        return self.n_latents is not None or self.judge_model is not None

    @property
    def latents_wanted(self) -> int:
        return self.n_latents or DEFAULT_LATENTS
