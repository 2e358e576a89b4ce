"""Where the time of our step goes: encoder product, selection, decode, gradients, optimiser, statistics.

    python benchmarks/breakdown.py

torch's profiler times every operation and autograd node; the trainer's parts that are neither get a label of their own.
A part's time is its own, without that of labelled parts within it. Steps without the profiler are timed in between, so
that its cost shows, and the encoder product alone.
"""

import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, activations, application, interleave, table, write_result
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile, record_function
from workers.ours import EncoderProduct, Ours
from workers.protocol import Spec

from sae_bench import Active, SparseAutoencoder
from sae_bench.training.device_stats import DeviceStats
from sae_bench.training.schedules import CoefficientController

METHODS: dict[str, tuple[tuple[object, str], ...]] = {
    "selection": ((SparseAutoencoder, "select_all"),),
    "decode": ((SparseAutoencoder, "decode"),),
    "decoder norms": ((SparseAutoencoder, "project_gradient"), (SparseAutoencoder, "renormalise")),
    "statistics": (
        (DeviceStats, "usable"),
        (DeviceStats, "note"),
        (CoefficientController, "update"),
        (Active, "count_per_latent"),
    ),
}
"""Part -> what does it: methods, or functions as the trainer calls them."""

NODES = {"_DecodeBackward": "decode's gradients", "_SelectBackward": "encoder's gradients"}
"""Autograd node -> part."""

PRODUCT, OTHER_GRADIENTS, OPTIMISER, REST = "encoder product", "other gradients", "optimiser", "the rest"
PARTS = (
    PRODUCT,
    "selection",
    "decode",
    *NODES.values(),
    OTHER_GRADIENTS,
    OPTIMISER,
    "decoder norms",
    "statistics",
    REST,
)

app = application(__doc__)


@app.default
def main(
    *,
    archs: tuple[str, ...] = ("relu", "gated", "topk", "jumprelu"),
    rounds: int = 9,
    discard: int = 2,
    d_sae: int = 8192,
    batch: int = 2048,
    l0: float = 64,
    threads: int = os.cpu_count() or 1,
    out: Path = RESULTS,
) -> None:
    """Profile steps and write breakdown.md.

    Parameters
    ----------
    archs
        Architectures.
    rounds
        Rounds that count.
    discard
        Rounds before them, to warm up.
    d_sae
        Latents.
    batch
        Tokens in a step.
    l0
        Active latents on a token.
    threads
        Threads.
    out
        Folder of the result.
    """
    torch.set_num_threads(threads)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # it would announce every profile
    x = load_file(activations())["x"]
    now = x[:batch]
    for label, methods in METHODS.items():
        for owner, name in methods:
            setattr(owner, name, labelled(label, getattr(owner, name)))
    product = EncoderProduct(x, Spec("encoder_product", d_sae, batch, 0))
    subjects = {arch: Ours(x, Spec(arch, d_sae, batch, l0)) for arch in archs}
    parts: dict[str, dict[str, list[float]]] = {arch: defaultdict(list) for arch in archs}
    turns: dict[Any, Callable[[], float]] = {"product": partial(timed, product.step, now)}
    for arch, ours in subjects.items():
        turns[arch] = partial(timed, ours.step, now)
        turns[arch, "profiled"] = partial(profiled, ours.step, now, parts[arch])
    seconds = interleave(turns, rounds, discard)

    alone = statistics.median(seconds["product"])

    def cell(times: list[float]) -> str:
        return f"{1000 * statistics.median(times):.0f} ({statistics.median(times) / alone:.2f})"

    rows = [[part, *(cell(parts[arch][part][discard:]) for arch in archs)] for part in PARTS]
    rows += [["step, profiled", *(cell(seconds[arch, "profiled"]) for arch in archs)]]
    rows += [["step", *(cell(seconds[arch]) for arch in archs)]]
    about = (
        f"d_sae {d_sae}, batch {batch}, L0 {l0:g}, float32, real activations. Median milliseconds of {rounds} "
        f"interleaved rounds, and in brackets the same in units of the encoder product alone ({1000 * alone:.0f} ms). "
        "Decoder norms: projection of the decoder's gradient, renormalisation. The rest: losses, schedules."
    )
    write_result(
        out,
        "Breakdown of our step",
        [about, table(rows, ["part", *archs])],
        {"torch": torch.__version__},
        threads,
    )


def labelled(label: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, seen by the profiler under a label."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return method(*args, **kwargs)

    return wrapper


def timed(step: Callable[[torch.Tensor], None], x: torch.Tensor) -> float:
    start = time.perf_counter()
    step(x)
    return time.perf_counter() - start


def profiled(step: Callable[[torch.Tensor], None], x: torch.Tensor, into: dict[str, list[float]]) -> float:
    """Seconds of a step; those of its parts are added to `into`."""
    with profile(activities=[ProfilerActivity.CPU]) as recording:
        taken = timed(step, x)
    own: dict[str, float] = defaultdict(float)
    for event in recording.events() or ():
        part = part_of(event)
        if part is None:
            continue
        own[part] += event.time_range.elapsed_us() / 1e6
        outer = event.cpu_parent
        while outer is not None and (around := part_of(outer)) is None:
            outer = outer.cpu_parent
        if outer is not None and around is not None:
            own[around] -= event.time_range.elapsed_us() / 1e6
    own[REST] = taken - sum(own.values())
    for part in PARTS:
        into[part].append(own[part])
    return taken


def part_of(event: Any) -> str | None:
    """Which part an event begins; None for events that belong to whatever is around them."""
    if event.name in METHODS:
        return str(event.name)
    if event.name.startswith("Optimizer.step"):
        return OPTIMISER
    if event.name.startswith("autograd::engine::evaluate_function"):
        return NODES.get(event.name.rpartition(" ")[2], OTHER_GRADIENTS)
    if event.name in ("aten::addmm", "aten::mm") and _within(event, "selection"):
        return PRODUCT
    return None


def _within(event: Any, label: str) -> bool:
    outer = event.cpu_parent
    while outer is not None and outer.name != label:
        outer = outer.cpu_parent
    return outer is not None


if __name__ == "__main__":
    sys.exit(app())
