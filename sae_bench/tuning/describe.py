"""`tune --dry-run`: rungs, trials, time, memory and disk, found without loading a weight."""

from pathlib import Path

from tabulate import tabulate
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_bench.device import choose_device, has_cuda
from sae_bench.lm.activations import ActivationModel
from sae_bench.progress import duration
from sae_bench.registry import ARCHITECTURES
from sae_bench.runs.checks import check
from sae_bench.runs.config import RunConfig
from sae_bench.runs.costs import Peaks, peaks_of
from sae_bench.runs.dry_run import memory_bytes
from sae_bench.runs.plan import SAEPlan, plan_saes, training_disk_bytes
from sae_bench.runs.sources import model_shape
from sae_bench.runs.times import stage_times
from sae_bench.runs.tuned import CHECK, rung_name
from sae_bench.saes.knobs import LR, Knob
from sae_bench.tuning.stages import check_config, check_tunable, rung_config
from sae_bench.tuning.trials import TuneSettings, trials_of, tuned_archs


def describe_tuning(config: RunConfig, settings: TuneSettings, out: Path) -> str:
    """The plan as text. Which trials go on is not known: the first stand for them.

    Raises:
        UserError: the tuning cannot be done.
    """
    check_tunable(config, settings)
    archs, left_out = tuned_archs(config.archs)
    trials = [trials_of(arch, config.preset, settings.trials) for arch in archs]
    stages = {}
    for rung in range(settings.rungs):
        some = [trial for of_arch in trials for trial in of_arch[: settings.n_kept(rung)]]
        stages[rung_name(rung)] = settings.n_kept(rung), rung_config(config, settings, rung, some)
    stages[CHECK] = 2, check_config(config, settings, [trial for of_arch in trials for trial in of_arch[:2]])
    device, dtype = choose_device(config.device, config.dtype, here=False)
    with FakeTensorMode():
        lm = model_shape(config, dtype)
        plans = {name: plan_saes(of_stage, lm) for name, (_, of_stage) in stages.items()}
    lm.device = device
    here = device.type == "cpu" or has_cuda(device)
    peaks = peaks_of(device, lm.dtype, here=here)[0]
    rows, seconds, disk = [], 0.0, 0
    for name, (n, of_stage) in stages.items():
        check(of_stage, of_stage.tasks)
        took, n_bytes, row = _stage(lm, of_stage, plans[name], peaks, here=here)
        rows.append([name, n, *row])
        seconds, disk = seconds + took, disk + n_bytes
    head = ["run", "trials of each", "SAEs", "activations", "steps", "memory", "disk", "time"]
    ranges = [f"{arch.label}: {_ranges({'lr': LR, **ARCHITECTURES[arch.name].knobs})}" for arch in archs]
    return "\n".join(
        [
            tabulate(rows, head, tablefmt="simple", disable_numparse=True),
            "",
            f"model      {lm.name}; {config.dataset}, its part for tuning",
            f"in all     about {duration(seconds)} on {device}, "
            f"{disk / 1e9:.2f} GB in {out} (computed, or as in earlier runs)",
            *(f"tuned      {line}" for line in ranges),
            *(f"left out   {line}" for line in left_out),
        ]
    )


def _stage(
    lm: ActivationModel, config: RunConfig, plans: list[SAEPlan], peaks: Peaks, *, here: bool
) -> tuple[float, int, list[str]]:
    """Seconds and bytes of a run, and its part of the table."""
    times = stage_times(lm, config, {"training": plans, "evaluation": plans}, peaks, here=here)
    seconds = sum(time.seconds for time in times.values())
    n_bytes, memory = training_disk_bytes(plans), memory_bytes(config, plans, [*plans], lm)
    steps = config.tokens * config.reuse // config.batch_size
    counts = [f"{number:,}" for number in (len(plans), config.tokens, steps)]
    return seconds, n_bytes, [*counts, f"{memory / 1e9:.1f} GB", f"{n_bytes / 1e9:.2f} GB", duration(seconds)]


def _ranges(knobs: dict[str, Knob]) -> str:
    times = {True: " times the preset's", False: ""}
    return ", ".join(f"{name} {knob.low:g} to {knob.high:g}{times[knob.relative]}" for name, knob in knobs.items())
