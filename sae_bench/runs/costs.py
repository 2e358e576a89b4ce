"""How long a run takes, computed: every part of it takes as long as its arithmetic or its traffic, whichever is longer.

That is the roofline of the device: its published peaks and the share of them that is usual, or, for a CPU and for a
card that is not in the table, what one product of matrices and one copy show here. Reading and tokenising text, and
judging latents, are not in it.

Shapes: B activations in a batch, D width of a site, F latents, k of them active.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sae_bench.device import has_cuda
from sae_bench.evaluation.task import token_tasks
from sae_bench.lm.activations import ActivationModel
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site
from sae_bench.registry import ARCHITECTURES
from sae_bench.runs.config import RunConfig
from sae_bench.runs.import_saes import Plan
from sae_bench.runs.plan import SAEPlan, tasks_of
from sae_bench.saes.base import START_DENSITY

CARDS = {
    "H100 PCIe": (756e12, 51e12, 2.0e12),
    "H200": (989e12, 67e12, 4.8e12),
    "H100": (989e12, 67e12, 3.35e12),
    "A100": (312e12, 19.5e12, 2.0e12),
}
"""NVIDIA's figures, by what the name of a card has in it: bfloat16 and float32 operations, and bytes, per second."""

ATTAINED = (0.5, 0.75, 0.8)
"""Share of each that large products and large copies usually reach: an assumption."""

ADAM_BYTES = 28
"""Per parameter: it, its gradient and two moments read, and all but the gradient written."""


@dataclass(frozen=True)
class Peaks:
    """What a device does in a second: operations in the language model's dtype or bfloat16, in float32, and bytes."""

    name: str
    half: float
    single: float
    bandwidth: float

    def seconds(self, flops: float, n_bytes: float = 0, *, half: bool = False) -> float:
        """How long a part of the work takes."""
        return max(flops / (self.half if half else self.single), n_bytes / self.bandwidth)


def peaks_of(device: torch.device, dtype: torch.dtype, *, here: bool) -> list[Peaks]:
    """The device's peaks, or those of every card known where a CUDA device is not `here`."""
    name = torch.cuda.get_device_name(device) if has_cuda(device) else ""
    found = [card for card in CARDS if card in name][:1] if here else list(CARDS)
    if found:
        return [Peaks(card, *(x * y for x, y in zip(CARDS[card], ATTAINED, strict=True))) for card in found]
    size = 4096 if device.type == "cuda" else 1024
    a, much = torch.randn(size, size, device=device), torch.zeros(2, 1 << 25, device=device)  # more than caches hold
    single = 2 * size**3 / _seconds(lambda: a @ a, device)
    b = a.to(dtype)
    half = single if dtype == a.dtype else 2 * size**3 / _seconds(lambda: b @ b, device)
    return [Peaks(name or "this CPU", half, single, much.nbytes / _seconds(lambda: much[0].copy_(much[1]), device))]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest time that work took, of as many as fit into half a second."""
    times: list[float] = []
    while len(times) < 4 or sum(times) < 0.5:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first warms up


class LMWork:
    """Floating-point operations of the language model on one token: of a decoder layer, and of the vocabulary.

    Where no task of the run asks for losses, nothing after a site is run.
    """

    def __init__(self, lm: ActivationModel, config: RunConfig) -> None:
        self.n_layers, self.half = lm.n_layers, lm.dtype != torch.float32
        self.layer = lm.token_flops(config.context_size)
        self.has_losses = isinstance(lm, LanguageModel) and has_losses(config)
        self.vocabulary = 2 * lm.d_model * lm.n_vocab if isinstance(lm, LanguageModel) else 0

    def before(self, site: Site) -> float:
        """The layers that an activation at the site takes."""
        return self.layer * min(site.layer + 1, self.n_layers)

    def after(self, site: Site) -> float:
        """The layers that a replay from the site runs, and what it predicts."""
        if not self.has_losses:
            return 0
        whole = site.kind == "resid_post"
        return self.layer * max(self.n_layers - site.layer - whole, 0) + self.vocabulary

    @property
    def clean_pass(self) -> float:
        """All layers, and what the model predicts."""
        return self.n_layers * self.layer + self.vocabulary if self.has_losses else 0

    @property
    def passes_before(self) -> int:
        """Of evaluation, those that end at the deepest site: for means, and for the SAEs if there is no clean pass."""
        return 1 if self.has_losses else 2

    def ablations(self, site: Site) -> float:
        """Two replays, zero and mean, where contexts stay apart after the site."""
        return 0 if site.kind == "resid_post" else 2 * self.after(site)

    def evaluation(self, sites: Sequence[Site]) -> float:
        """Evaluating SAEs at these sites, one for each SAE."""
        of_sites = sum(map(self.ablations, dict.fromkeys(sites)))
        deepest = self.passes_before * max(map(self.before, sites))
        return deepest + self.clean_pass + of_sites + sum(map(self.after, sites))


def has_losses(config: RunConfig) -> bool:
    """Whether a task of the run asks for the language model's losses."""
    return any(task.needs_lm_loss for task in token_tasks(tasks_of(config)).values())


def training_seconds(lm: ActivationModel, config: RunConfig, plans: Sequence[SAEPlan], peaks: Peaks) -> float:
    """Capture once, and every SAE's steps."""
    work = LMWork(lm, config)
    capture = peaks.seconds(config.tokens * max(work.before(plan.site) for plan in plans), half=work.half)
    n_steps = config.tokens * config.reuse // config.batch_size
    return capture + n_steps * sum(step_seconds(plan, config.batch_size, lm.device, peaks) for plan in plans)


def step_seconds(plan: SAEPlan, batch_size: int, device: torch.device, peaks: Peaks) -> float:
    """One step of one SAE: encoder product, four products over active pairs, gradients, Adam, and decoder norms.

    A GPU screens: its encoder product is in half precision, and the active pairs' is one product more. Matching pursuit
    has its steps besides; what is not trained has none.
    """
    if not ARCHITECTURES[plan.arch.name].is_trained:
        return 0.0
    d_in, d_sae = plan.config.d_in, plan.config.d_sae
    gpu = device.type == "cuda"
    product, matrix = 2 * batch_size * d_in * d_sae, 4 * d_in * d_sae
    latents = 4 * batch_size * d_sae  # written and read
    pairs = batch_size * active(plan)
    sparse = (5 if gpu else 4) * peaks.seconds(2 * pairs * d_in, 4 * pairs * d_in)
    dense = 4 * peaks.seconds(product, matrix + latents)
    return (
        peaks.seconds(product, 2 * matrix + latents if gpu else matrix + 2 * latents, half=gpu)
        + pursuit_seconds(plan, batch_size, peaks)
        + min(sparse, dense)
        + peaks.seconds(0, 2 * matrix + ADAM_BYTES * plan.n_parameters + 5 * matrix)
    )


def active(plan: Plan) -> float:
    """Latents active on a token: as wanted, or as at the start where no L0 is wanted."""
    return START_DENSITY * plan.config.d_sae if plan.config.l0 is None else plan.config.l0


def pursuit_seconds(plan: Plan, n_tokens: int, peaks: Peaks) -> float:
    """Matching pursuit's k steps, each a product, or a pass over z that takes a row off; 0 for others."""
    name = plan.arch.name if isinstance(plan, SAEPlan) else plan.sae.arch
    if ARCHITECTURES[name].nonlinearity != "matching_pursuit":
        return 0.0
    n = n_tokens * plan.config.d_sae
    return active(plan) * min(peaks.seconds(2 * n * plan.config.d_in), peaks.seconds(0, 4 * 4 * n))


def evaluation_seconds(lm: ActivationModel, config: RunConfig, plans: Sequence[Plan], peaks: Peaks) -> float:
    """Means, the clean pass, ablations where contexts stay apart, and for each SAE a replay and its own products."""
    work = LMWork(lm, config)
    flops = config.n_held_out * work.evaluation([plan.site for plan in plans])
    return peaks.seconds(flops, half=work.half) + sum(
        encoding_seconds(plan, config.n_held_out, peaks) for plan in plans
    )


def encoding_seconds(plan: Plan, n_tokens: int, peaks: Peaks) -> float:
    """An SAE's own products in evaluation."""
    return (
        peaks.seconds(n_tokens * 2 * plan.config.d_in * plan.config.d_sae)
        + pursuit_seconds(plan, n_tokens, peaks)
        + peaks.seconds(0, n_tokens * 4 * active(plan) * plan.config.d_in)
    )
