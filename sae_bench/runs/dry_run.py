"""`--dry-run`: the plan of a run with its steps, memory, disk and time, found without loading a weight.

The language model is built from its configuration out of fake tensors, which have shapes but no memory; its sites and
their widths are found in it exactly as in the real run.
"""

from tabulate import tabulate
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_bench.autointerp.forecast import forecast_unseen
from sae_bench.autointerp.judges import judges_of, spending_of
from sae_bench.autointerp.random_baseline import random_baselines
from sae_bench.autointerp.sample import collection_bytes
from sae_bench.device import choose_device, free_bytes, has_cuda
from sae_bench.evaluation.loop import batch_bytes, contexts_at_once
from sae_bench.evaluation.task import read_texts
from sae_bench.lm.activations import ActivationModel
from sae_bench.lm.load import random_name
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.cached import describe_cache
from sae_bench.runs.checks import check, default_corpus, repeats
from sae_bench.runs.config import RunConfig
from sae_bench.runs.costs import peaks_of
from sae_bench.runs.growing import grown
from sae_bench.runs.import_saes import ImportPlan, Plan, open_imports, plan_imports
from sae_bench.runs.left import Left, uncounted, what_is_left
from sae_bench.runs.plan import SAEPlan, plan_saes, tasks_of, training_bytes, training_disk_bytes
from sae_bench.runs.sources import model_shape, token_stream
from sae_bench.runs.times import stage_times
from sae_bench.training.serving import buffer_bytes

PROCESS_BYTES = 1000 << 20
"""Python with torch and transformers imported, and the working memory of a forward pass."""


def memory_bytes(config: RunConfig, plans: list[SAEPlan], everything: list[Plan], lm: ActivationModel) -> int:
    """Peak memory of a run, the device's, with the process: what training or evaluation holds, whichever is more."""
    weights = 4 * sum(plan.n_parameters for plan in everything)
    training = 0
    if plans:
        sites = list(dict.fromkeys(plan.site for plan in plans))
        buffer = buffer_bytes(sites, lm.dtype, config.tokens, config.buffer_tokens, overlap=lm.device.type == "cuda")
        training = buffer + training_bytes(plans)
    evaluation = weights + batch_bytes(lm, config.context_size, [(p.site, p.config) for p in everything])
    interpretation = weights + latent_bytes(config, everything)
    return PROCESS_BYTES + lm.n_bytes + max(training, evaluation, interpretation)


def latent_bytes(config: RunConfig, plans: list[Plan]) -> int:
    """Memory for collecting latents, if they are, SAEs and language model apart."""
    if not config.collects:
        return 0
    widths = [plan.config.d_sae for plan in plans]
    return collection_bytes(config.latents_wanted, widths, config.interp_tokens_wanted, config.context_size)


def describe_plan(config: RunConfig, folder: RunFolder, *, overwrite: bool = False) -> str:
    """The plan as text: what is new, what is finished, and what it takes; the device may be another machine's."""
    if overwrite:
        folder.check_clear()
    else:
        config = grown(config, folder, Progress())
    check(config, tasks_of(config))
    texts = read_texts(tasks_of(config), config)
    opened = open_imports(config)
    device, dtype = choose_device(config.device, config.dtype, here=False)
    with FakeTensorMode():
        lm = model_shape(config, dtype)
        plans = plan_saes(config, lm)
        imports = plan_imports(lm, config, opened)
        held_out = token_stream(lm, config, "eval", config.n_held_out)
    lm.device = device  # its fake weights are on the CPU: a torch without CUDA cannot run fake ones there
    if config.random_lm:
        lm.name = random_name(lm.name, config.seeds[0])
    everything: list[Plan] = [*plans, *imports]
    left = what_is_left(config, folder, everything, texts, overwrite=overwrite)
    to_make = {name for name, of in left.items() if of is Left.TRAINING}
    to_evaluate = [plan for plan in everything if left[plan.id] in (Left.TRAINING, Left.EVALUATION)]
    rows = []
    for plan in everything:
        state = "to import" if plan.id in to_make and isinstance(plan, ImportPlan) else left[plan.id]
        rows.append([plan.id, plan.site.path, plan.config.d_in, state])
    plans = [plan for plan in plans if plan.id in to_make]
    n_steps = config.tokens * config.reuse // config.batch_size if plans else 0
    memory = memory_bytes(config, plans, everything, lm)
    disk = training_disk_bytes(plans) + 4 * sum(plan.n_parameters for plan in imports if plan.id in to_make)
    n_contexts = contexts_at_once(lm, config.context_size)
    here = device.type == "cpu" or has_cuda(device)
    free = free_bytes(device) if here else None
    latents = [
        f"latents    {config.latents_wanted:,} of each SAE from {config.interp_tokens_wanted:,} more held-out tokens,"
        f" collected in about {latent_bytes(config, everything) / 1e6:,.0f} MB",
        describe_judge(config, everything),
    ]
    besides = uncounted(config, texts, left.values())
    return "\n".join(
        [
            tabulate(rows, ["SAE", "module", "d_in", "state"], tablefmt="simple", disable_numparse=True),
            "",
            f"model      {lm.name} ({lm.n_bytes / 1e9:.2f} GB in {str(dtype).removeprefix('torch.')} on {device}"
            f"{'' if here else ', which this machine does not have'})",
            f"data       {config.dataset}: {config.tokens:,} activations, each used {config.reuse} times;"
            f" {config.n_held_out:,} held-out tokens of {held_out.fewest_documents} documents at least,"
            f" {n_contexts} contexts of {config.context_size} at a time",
            *(f"corpus     {line}" for line in [*default_corpus(config), *repeats(config)]),
            f"training   {len(plans)} SAEs, {n_steps:,} steps of {config.batch_size:,}, preset {config.preset}"
            + (f", tuned by {' and '.join(one.name for one in config.recipes)}" if config.recipes else ""),
            *(latents if config.collects else ()),
            *(f"{name}: {text.describe()}" for name, text in texts.items()),
            f"memory     about {memory / 1e9:.1f} GB at the peak (computed)"
            + ("" if free is None else f"; {free / 1e9:.1f} GB are free on {device}"),
            f"disk       about {disk / 1e9:.2f} GB in {folder.path} (computed)",
            *([f"overwrite  the run in {folder.path} is deleted first"] if overwrite and folder.manifest() else ()),
            *describe_cache(config, {plan.site for plan in everything}, lm.dtype),
            *(f"{line}{besides}" for line in describe_time(config, plans, to_evaluate, lm, here=here)),
        ]
    )


def describe_judge(config: RunConfig, plans: list[Plan]) -> str:
    """What judging takes, if every latent has all its excerpts and nothing was answered before."""
    judges = judges_of(config)
    if judges is None:
        return "judge      none"
    n_random = len(random_baselines((plan.config, plan.site) for plan in plans)) if config.chance else 0
    takes = forecast_unseen(judges, config.latents_wanted * (len(plans) + n_random))
    return f"judge      {config.judge_model}: {takes.describe(spending_of(config, judges))} (computed)"


def describe_time(
    config: RunConfig, to_train: list[SAEPlan], to_evaluate: list[Plan], lm: ActivationModel, *, here: bool
) -> list[str]:
    """How long training and evaluation take, as measured where an earlier run was like this one, else computed."""
    if not to_train and not to_evaluate:
        return ["time       nothing is left to train, or to evaluate on the held-out tokens"]
    saes: dict[str, list[Plan]] = {"training": [*to_train], "evaluation": to_evaluate}
    lines = []
    for peaks in peaks_of(lm.device, lm.dtype, here=here):
        times = stage_times(lm, config, saes, peaks, here=here)
        total = sum(time.seconds for time in times.values())
        unit = "hours" if lm.device.type == "cpu" else "GPU-hours"
        parts = ", ".join(f"{stage} {time}" for stage, time in times.items())
        lines.append(f"time       {parts}: {total / 3600:.2g} {unit} on {peaks.name}")
    return lines
