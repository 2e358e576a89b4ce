"""What is asked of automated interpretability: how many latents, on what text, and who judges.

These settings decide no weight and no other metric, so a run's identity leaves them out: the same command with a judge
added makes the records that the judge is for, and nothing else again. What they do decide is kept in those records.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sae_bench.parsing import Count, Flag, Heading, parse_count

DEFAULT_SCORERS = ("detection", "fuzzing")
DEFAULT_LATENTS = 100
DEFAULT_TOKENS = {"paper": 2_000_000, "short": 16_384}


@dataclass(frozen=True)
class Budget:
    """The most that the judge may cost in one command."""

    dollars: float | None = None
    tokens: int | None = None


def parse_budget(text: object) -> Budget:
    """Read "5usd" or "$5" as dollars, "2M tokens" or "2M" as tokens; a bare number could be either and is neither."""
    words = str(text).strip()
    dollars = re.fullmatch(r"\$\s*([\d.]+)|([\d.]+)\s*(?:usd|dollars)", words, flags=re.IGNORECASE)
    tokens = re.fullmatch(r"([\d_.]+(?:e\d+)?\s*[kKM]?)\s*tokens?|([\d_.]+\s*[kKM])", words)
    try:
        if dollars and (most := float(dollars[1] or dollars[2])) > 0:
            return Budget(dollars=most)
        if tokens and (n := parse_count(tokens[1] or tokens[2])) > 0:
            return Budget(tokens=n)
    except ValueError:
        pass
    eaten = "; a shell makes that of $5 without quotation marks" if re.fullmatch(r"[\d.]*", words) else ""
    raise ValueError(f'"{words}" is no budget: write 5usd for dollars, or "2M tokens"{eaten}')


BudgetText = Annotated[Budget, BeforeValidator(parse_budget)]


class JudgeConfig(BaseModel):
    """The settings of a run that its identity leaves out; without `judge_model` nobody judges."""

    # Help follows from the docstrings; validators are built when they are first needed, which `--help` does not.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    n_latents: Annotated[Count | None, Flag(Heading.INTERPRETABILITY, "latents")] = None
    """Latents of each SAE to collect excerpts of, for the judge or to look at. Default: 100 if there is a judge."""
    interp_tokens: Annotated[Count | None, Flag(Heading.INTERPRETABILITY)] = None
    """Held-out tokens, after those of the evaluation, to find the excerpts in. Default: 2M, short: 16k."""
    hard_negatives: Annotated[bool, Flag(Heading.INTERPRETABILITY)] = False
    """Among the excerpts in which a latent is silent take some in which similar latents fire."""
    chance: Annotated[bool, Flag(Heading.INTERPRETABILITY)] = False
    """Explain and score the latents of a random SAE too, to see what chance looks like."""
    scorers: Annotated[tuple[str, ...], Flag(Heading.INTERPRETABILITY, "autointerp_scorers")] = DEFAULT_SCORERS
    """Ways to score an explanation (see `ls scorers`)."""
    judge_model: Annotated[str | None, Flag(Heading.INTERPRETABILITY)] = None
    """Language model that explains latents and scores explanations (docs/autointerp.md). Default: no judge."""
    judge_base_url: Annotated[str | None, Flag(Heading.INTERPRETABILITY)] = None
    """Its endpoint, if it is not OpenAI's: http://localhost:8000/v1. Keys are read from the environment alone."""
    explainer_model: Annotated[str | None, Flag(Heading.INTERPRETABILITY)] = None
    """Another model for the explanations."""
    explainer_base_url: Annotated[str | None, Flag(Heading.INTERPRETABILITY)] = None
    """Another endpoint for the explanations."""
    explainer_excerpts: Annotated[int, Field(gt=0, le=20), Flag(Heading.INTERPRETABILITY)] = 20
    """The most excerpts that the explainer is shown, half of them the strongest; 8 for a small model."""
    judge_excerpts: Annotated[int, Field(gt=0), Flag(Heading.INTERPRETABILITY)] = 10
    """The most excerpts in one question of detection or fuzzing; 1 for a small model."""
    judge_budget: Annotated[BudgetText | None, Flag(Heading.INTERPRETABILITY)] = None
    """The most that judging may cost in this command: 5usd or "2M tokens"."""
    judge_prices: Annotated[str | None, Flag(Heading.INTERPRETABILITY)] = None
    """TOML file with prices of models, in dollars per million tokens."""
    judge_concurrency: Annotated[int, Field(gt=0), Flag(Heading.INTERPRETABILITY)] = 8
    """Requests under way at once."""
    judge_timeout: Annotated[float, Field(gt=0), Flag(Heading.INTERPRETABILITY)] = 60.0
    """Seconds for a whole answer; a request that takes longer is sent again, a few times."""
    judge_optional: Annotated[bool, Flag(Heading.INTERPRETABILITY)] = False
    """Go on without scores if the judge cannot be reached, instead of stopping before anything begins."""

    @property
    def collects(self) -> bool:
        """Whether examples are collected at all."""
        return self.n_latents is not None or self.judge_model is not None

    @property
    def latents_wanted(self) -> int:
        return self.n_latents or DEFAULT_LATENTS
