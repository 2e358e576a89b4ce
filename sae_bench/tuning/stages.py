"""The runs that a tuning is made of, each a run like any other: rungs, and a check of what they found.

    rung 1      all trials, the fewest tokens       all SAEs of a rung share one stream of activations
    rung 2      of each architecture one in `factor`, `factor` times the tokens
    ...         the last has all tokens
    check       the winner and the preset's own settings, other seeds, other held-out text

A rung trains its trials from the beginning: warm-ups and decay are shares of a run, so the beginning of a long training
is not a short one, and to go on from a rung whose learning rate had decayed would be another recipe than the one that a
board trains by.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sae_bench.errors import UserError
from sae_bench.runs.config import RunConfig
from sae_bench.runs.tuned import PART
from sae_bench.tuning.trials import Trial, TuneSettings


def rung_config(config: RunConfig, settings: TuneSettings, rung: int, trials: Sequence[Trial]) -> RunConfig:
    """The run of a rung, from 0."""
    return _with(config, trials, tokens=config.tokens // settings.share(rung))


def check_config(config: RunConfig, settings: TuneSettings, trials: Sequence[Trial]) -> RunConfig:
    """The run that says what was found is worth."""
    first = max(config.seeds) + 1
    # Behind what the rungs evaluated on: a document's rest, and a context that was begun, may be more than they asked.
    skip = config.eval_skip + config.eval_tokens + 4 * config.context_size
    return _with(config, trials, seeds=tuple(range(first, first + settings.check_seeds)), eval_skip=skip)


def _with(config: RunConfig, trials: Sequence[Trial], **changes: Any) -> RunConfig:
    specs = tuple({trial.spec.label: trial.spec for trial in trials}.values())
    return config.model_copy(update={"archs": specs, "tasks": ("reconstruction",), "part": PART, **changes})


def check_tunable(config: RunConfig, settings: TuneSettings) -> None:
    """See that there is a tuning in these settings.

    Raises:
        UserError: there is none.
    """
    settings.check()
    if config.preset != "short":
        raise UserError(
            f"--preset {config.preset} is what papers say, and stays so: `tune` looks for settings of short"
        )
    if config.recipe is not None:
        raise UserError(
            f"--recipe {config.recipe.name}: `tune` finds a recipe, and begins from the preset: leave it out"
        )
    if config.saes or config.sparsity:
        flag = "--sae" if config.saes else "--sparsity"
        raise UserError(f"{flag}: `tune` compares trainings at wanted L0s: leave it out, and give --l0")
    l0s = sorted(config.l0s)
    if any(high < 1.3 * low for low, high in pairwise(l0s)) or len(l0s) < 2:
        given = " ".join(f"{l0:g}" for l0 in l0s)
        raise UserError(
            f"--l0 {given}: recipes are compared at the very L0s wanted, on a curve: give two or more, each 1.3 times "
            "the one before at least"
        )
    least = config.tokens // settings.share(0)
    if least * config.reuse < config.batch_size:
        raise UserError(
            f"--tokens {config.tokens}: the first rung has {least} of them, used {config.reuse} times, and a batch "
            f"{config.batch_size}: raise it, or lower --rungs or --batch-size"
        )
