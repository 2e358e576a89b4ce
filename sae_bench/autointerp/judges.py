"""Who judges a run's latents: endpoints, scorers and prompts, from the settings and the environment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_bench.autointerp.budget import Meter, load_prices
from sae_bench.autointerp.client import OPENAI, Endpoint
from sae_bench.autointerp.prompt import Prompt
from sae_bench.autointerp.settings import Budget, JudgeConfig, ScorerName, parse_budget
from sae_bench.errors import UserError
from sae_bench.records.redact import redact

COLLECTION_VERSION = "1"
"""Of what is collected and how it is dealt out; raised when that changes."""

EXPLAIN = "explain"

HOW = "no judge: give --judge-model and --judge-base-url, or a key in OPENAI_API_KEY (docs/autointerp.md)"


@dataclass(frozen=True)
class Panel:
    """Who explains and who scores, and how."""

    explainer: Endpoint
    scorer: Endpoint
    scorers: Sequence[ScorerName]
    excerpts_per_question: int = 10

    @property
    def prompts(self) -> dict[str, dict[str, str]]:
        return {name: Prompt.load(name).identity for name in (EXPLAIN, *self.scorers)}


def panel_of(config: JudgeConfig) -> Panel | None:
    """The judges that are asked for; None if there are none, or OpenAI's and no key to it."""
    if config.judge_model is None:
        return None
    scorer = Endpoint(config.judge_model, config.judge_base_url or OPENAI)
    explainer = Endpoint(
        config.explainer_model or scorer.model, config.explainer_base_url or config.judge_base_url or OPENAI
    )
    if any(endpoint.base_url == OPENAI and not endpoint.key for endpoint in (scorer, explainer)):
        return None
    return Panel(explainer, scorer, config.scorers, config.judge_excerpts)


def meter_of(config: JudgeConfig, panel: Panel) -> Meter:
    """The books of this command's judges; UserError as in `load_prices` and `Meter.check`."""
    budget = parse_budget(config.judge_budget) if config.judge_budget else Budget()
    meter = Meter(budget, load_prices(config.judge_prices))
    meter.check({panel.explainer.model, panel.scorer.model})
    return meter


def judge_settings(config: JudgeConfig, panel: Panel | None, interp_tokens: int) -> dict[str, Any] | None:
    """What decides the scores: two records that differ in it do not belong into one table."""
    if panel is None:
        return None
    return {
        "judge": {"model": panel.scorer.model, "base_url": redact(panel.scorer.base_url)},
        "explainer": {"model": panel.explainer.model, "base_url": redact(panel.explainer.base_url)},
        "scorers": list(panel.scorers),
        "prompts": panel.prompts,
        "excerpts_per_question": panel.excerpts_per_question,
        "collection": COLLECTION_VERSION,
        "n_latents": config.latents_wanted,
        "interp_tokens": interp_tokens,
        "hard_negatives": config.hard_negatives,
    }


def check_judge(config: JudgeConfig) -> None:
    """Raise UserError for a budget or prices that cannot be worked with, before anything long begins."""
    panel = panel_of(config)
    if panel is not None:
        meter_of(config, panel)
    elif config.judge_base_url and config.judge_model is None:
        raise UserError(f"--judge-base-url {config.judge_base_url} needs --judge-model, the name of a model there")
