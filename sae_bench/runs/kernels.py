"""Which kernels the SAEs of a run train with: one measurement for each shape, which all of that shape go by."""

from collections.abc import Sequence

import torch

from sae_bench.progress import Progress
from sae_bench.runs.config import RunConfig
from sae_bench.runs.plan import SAEPlan
from sae_bench.saes.kernel_choice import crossovers
from sae_bench.saes.kernels import Crossovers


def shape_of(plan: SAEPlan) -> str:
    """What `RunOutline.kernels` names."""
    return f"{plan.config.d_in}x{plan.config.d_sae}"


def measured_kernels(
    config: RunConfig, plans: Sequence[SAEPlan], device: torch.device, progress: Progress
) -> dict[str, Crossovers]:
    """For each shape, where one way of computing overtakes another; empty unless it is asked for."""
    if config.kernels != "auto" and config.screening != "auto":
        return {}
    found = {}
    for shape, plan in {shape_of(plan): plan for plan in plans}.items():
        d_in, d_sae = plan.config.d_in, plan.config.d_sae
        found[shape] = at = crossovers(d_in, d_sae, config.batch_size, device)
        above = f"dense products above {at.dense_above:.0%} active pairs"
        below = f"screening up to {at.screen_below:.1%} candidates" if at.screen_below else "no screening"
        ways = [above] * (config.kernels == "auto") + [below] * (config.screening == "auto")
        progress.say(f"kernels: {', '.join(ways)}, at {d_in} x {d_sae}")
    return found
