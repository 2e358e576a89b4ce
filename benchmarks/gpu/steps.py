"""(b) One training step of every architecture: ours against a dense trainer, its parts against the device's limits.

Activations are synthetic: every token is a sum of `l0` of the SAE's own decoder rows, with noise, so that each latent's
pre-activation is clearly above its threshold where it should be, as in a trained SAE. Thresholds and biases are
quantiles.
"""

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from workers import ours
from workers.dense import Dense
from workers.ours import Ours
from workers.protocol import Spec, Subject

from gpu.floors import Ceilings, Shape, floors
from gpu.parts import timed_parts
from gpu.primitives import measure_ceilings, screen_checks, selection_checks
from gpu.report import Report, milliseconds, peak_gb, spread
from gpu.scale import Scale
from sae_bench.registry import known_architectures
from sae_bench.saes import base
from sae_bench.saes.active import as_active
from sae_bench.saes.kernel_choice import crossovers
from sae_bench.saes.kernels import Crossovers

ABOUT = "(b) One training step"
OURS = "ours"
DISCARD = 4
"""Steps to warm up."""


@dataclass(frozen=True)
class Variant:
    """A trainer: ours with some settings of its steps, the dense twin, or a peer, if it is installed."""

    name: str
    dense: bool = False
    peer: str | None = None
    autocast: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant(OURS),
    Variant("ours, unscreened", settings={"screening": "off"}),
    Variant("dense, bfloat16", dense=True, autocast=True),
    Variant("dense, float32", dense=True),
    Variant("sparsify", peer="sparsify"),
)
"""What is timed, for every architecture and width. Settings are fields of `StepSettings`."""


def trains(variant: Variant, arch: str) -> bool:
    """Whether a trainer is here, and has the architecture: the one peer that is tried has topk alone."""
    if variant.dense:
        return hasattr(Dense, arch)
    return variant.peer is None or (arch == "topk" and find_spec(variant.peer) is not None)


def run(report: Report, scale: Scale) -> None:
    """Every row."""
    report.facts |= {"about": ABOUT, "d_in": scale.d_in, "batch": scale.batch, "l0": scale.l0}
    ceilings = Ceilings()
    report.run("ceilings", "ceilings", partial(measure_ceilings, scale, ceilings))
    medians: dict[tuple[str, int, str], float] = {}
    for width in scale.widths:
        x = activations(scale, width)
        at = {width: Crossovers()}
        report.run("crossover", f"width {width}", partial(crossover, scale, width, at), seconds=15)
        for arch in known_architectures(False):
            for variant in (variant for variant in VARIANTS if trains(variant, arch)):
                name = f"{arch}, {width}, {variant.name}"
                step = partial(time_step, report, scale, ceilings, x, arch, width, variant, medians, at[width])
                report.run("steps", name, step, seconds=5)
        report.run("selection alone", f"width {width}", partial(selection_checks, scale, width, x), seconds=5)
        report.run("float8 screen", f"width {width}", partial(screen_checks, scale, width, x), seconds=5)
        report.run("compared", f"width {width}", partial(compare, medians, width))


def crossover(scale: Scale, width: int, at: dict[int, Crossovers]) -> dict[str, Any]:
    """Where dense products and exact selection are faster, as a run measures and then remembers it."""
    at[width] = crossovers(scale.d_in, width, scale.batch, scale.device)
    return at[width]._asdict()


@contextmanager
def drawn_on(device: torch.device) -> Iterator[None]:
    """Within the block SAEs are made on the device: on the host a wide one takes seconds."""
    with patch.object(base, "initial_decoder", partial(drawn_decoder, device)), device:
        yield


def drawn_decoder(device: torch.device, d_in: int, d_sae: int, seed: int) -> Tensor:
    """Random rows of norm one."""
    generator = torch.Generator(device).manual_seed(seed)
    return functional.normalize(torch.randn(d_sae, d_in, device=device, generator=generator), dim=1)


def activations(scale: Scale, width: int) -> Tensor:
    """Sums of `l0` decoder rows of an SAE of this width, a fifth of noise, a mean; E||x||^2 = 1."""
    device, d_in, n = scale.device, scale.d_in, scale.n_activations
    rows = drawn_decoder(device, d_in, width, 0)
    generator = torch.Generator(device).manual_seed(1)
    which = torch.randint(width, (n, scale.l0), device=device, generator=generator)
    weights = 0.5 + torch.rand(n, scale.l0, device=device, generator=generator)
    signal = functional.embedding_bag(which, rows, per_sample_weights=weights, mode="sum")
    noise = torch.randn(n, d_in, device=device, generator=generator)
    mean = torch.randn(d_in, device=device, generator=generator)
    x = signal / signal.norm(dim=1).mean() + 0.5 * noise / d_in**0.5 + 0.3 * mean / d_in**0.5
    return x / x.square().sum(1).mean().sqrt()


def made(variant: Variant, x: Tensor, spec: Spec, at: Crossovers) -> Subject:
    """An SAE in a trainer's hands, on the device of x; `at` says where ours goes from one way to another."""
    with drawn_on(x.device), patch.object(ours, "crossovers", lambda *_: at):
        if variant.peer is not None:
            return import_module(f"workers.{variant.peer}").Sparsify(x, spec)  # type: ignore[no-any-return]
        return Dense(x, spec, autocast=variant.autocast) if variant.dense else Ours(x, spec, **variant.settings)


def time_step(
    report: Report,
    scale: Scale,
    ceilings: Ceilings,
    x: Tensor,
    arch: str,
    width: int,
    variant: Variant,
    medians: dict[tuple[str, int, str], float],
    at: Crossovers,
) -> dict[str, Any]:
    """Time the whole step; of ours also the parts, and the kernels that take longest."""
    if scale.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    subject = made(variant, x, Spec(arch, width, scale.batch, scale.l0), at)
    batches = x.split(scale.batch)
    turn = iter(range(1_000_000))

    def step() -> None:
        subject.step(batches[next(turn) % len(batches)])

    with torch.no_grad():
        l0 = subject.l0(batches[0])
    rounds = max(2, scale.rounds // 2) if variant.dense else scale.rounds  # long ones vary little
    times = milliseconds(step, scale.device, rounds=rounds, discard=2 if variant.dense else DISCARD)
    medians[arch, width, variant.name] = median = statistics.median(times)
    row = {
        "ms": median, "quartiles": spread(times), "tokens/s": 1000 * scale.batch / median, "L0": l0,
        "peak GB": peak_gb(scale.device),
    }  # fmt: skip
    if isinstance(subject, Ours) and variant.name == OURS:
        with torch.no_grad():
            pairs = as_active(subject.sae.encode(batches[0])).values.numel() / scale.batch
        row |= {"places a token": pairs, "skipped": subject.trainer.stats.n_skipped}
        name = f"{arch}, {width}, {variant.name}"
        shape = Shape(scale.batch, scale.d_in, width, round(scale.l0 * scale.batch), arch)
        report.run("parts", name, partial(part_rows, scale, ceilings, shape, step, subject), seconds=2)
        report.run("kernels", name, partial(kernel_rows, step), seconds=2)
    return row


def part_rows(scale: Scale, ceilings: Ceilings, shape: Shape, step: Any, subject: Ours) -> list[dict[str, Any]]:
    """Every part's time, and the floor that bytes or arithmetic set it."""
    found = timed_parts(step, scale.device, rounds=scale.rounds)
    limits = floors(shape, ceilings, found)
    total = sum(found.values())
    return [
        {
            "part": part, "ms": ms, "share": ms / total, "floor ms": limits[part].ms if part in limits else "",
            "bound by": limits[part].by if part in limits else "",
            "floor / ms": limits[part].ms / ms if part in limits and ms else "",
        }
        for part, ms in found.items()
    ]  # fmt: skip


def kernel_rows(step: Any, most: int = 10) -> list[dict[str, Any]]:
    """The kernels that take longest in one step."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=kinds) as recording:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    on_device = torch.cuda.is_available()

    def own_us(event: Any) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total)

    events = sorted(recording.key_averages(), key=own_us, reverse=True)
    if on_device:
        from torch.autograd import DeviceType

        events = [event for event in events if event.device_type == DeviceType.CUDA] or events
    return [{"kernel": event.key[:90], "calls": event.count, "ms": own_us(event) / 1000} for event in events[:most]]


def compare(medians: Mapping[tuple[str, int, str], float], width: int) -> list[dict[str, Any]]:
    """Every trainer's step in units of ours."""
    rows = []
    for arch in known_architectures(False):
        own = medians.get((arch, width, OURS))
        others = {v.name: medians.get((arch, width, v.name)) for v in VARIANTS if v.name != OURS}
        topk = medians.get(("topk", width, OURS))
        if own is None:
            continue
        row: dict[str, Any] = {"architecture": arch, "ours ms": own}
        row |= {f"{name} / ours": other / own for name, other in others.items() if other is not None}
        rows.append(row | ({"ours / topk's": own / topk} if topk else {}))
    return rows
