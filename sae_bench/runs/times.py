"""How long the stages of a run take: as measured where an earlier run was like this one, else computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_bench.lm.activations import ActivationModel
from sae_bench.progress import duration
from sae_bench.runs.config import RunConfig
from sae_bench.runs.costs import Peaks, evaluation_seconds, has_losses, peaks_of, training_seconds
from sae_bench.runs.import_saes import Plan
from sae_bench.runs.plan import SAEPlan
from sae_bench.runs.rates import known_rate


@dataclass(frozen=True)
class StageTime:
    """Seconds that a stage takes for its tokens, and how that is known."""

    seconds: float
    n_tokens: int
    how: str

    def __str__(self) -> str:
        return f"{duration(self.seconds)} ({self.n_tokens / self.seconds:,.0f} tokens/s, {self.how})"


def stage_times(
    lm: ActivationModel,
    config: RunConfig,
    saes: Mapping[str, Sequence[Plan]],
    peaks: Peaks | None = None,
    *,
    here: bool = True,
) -> dict[str, StageTime]:
    """Of training and evaluation, each for its SAEs; `peaks` are the device's, measured if there is need of them."""
    found = {}
    for stage, plans in saes.items():
        if not plans:
            continue
        n = config.n_held_out if stage == "evaluation" else config.tokens * config.reuse
        like_others = here and (stage == "training" or has_losses(config))  # rates of evaluation are with losses
        known = known_rate(stage, lm, config, [plan.describe() for plan in plans]) if like_others else None
        if known:
            found[stage] = StageTime(n / known.tokens_per_second, n, f"measured here in {duration(known.seconds)}")
            continue
        peaks = peaks or peaks_of(lm.device, lm.dtype, here=here)[0]
        trained = [plan for plan in plans if isinstance(plan, SAEPlan)]
        of_stage = training_seconds(lm, config, trained, peaks) if stage == "training" else 0.0
        found[stage] = StageTime(of_stage or evaluation_seconds(lm, config, plans, peaks), n, "computed")
    return found
