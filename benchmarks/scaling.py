"""How our step grows with the number of latents, the batch and L0, and what one more SAE on the stream costs.

    python benchmarks/scaling.py

One number is varied at a time, around the usual shape. For the number of SAEs whole runs are timed, from a loaded
language model to the last step: capture of the activations, and every SAE's steps on them.
"""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from common import (
    CONTEXT_SIZE,
    RESULTS,
    Worker,
    application,
    interleave,
    load_demo,
    ms,
    ratio,
    start_workers,
    table,
    training_buffer,
    turn,
    write_result,
)
from workers.protocol import Spec

from sae_bench import ARCHITECTURES, SAEConfig
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site
from sae_bench.progress import Progress
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.saes.kernel_choice import crossovers
from sae_bench.training.initial_values import INIT_SAMPLE
from sae_bench.training.loop import train
from sae_bench.training.trainer import SAETrainer, StepSettings

app = application(__doc__)


@app.default
def main(
    *,
    archs: tuple[str, ...] = ("topk", "jumprelu"),
    d_saes: tuple[int, ...] = (4096, 8192, 16_384, 32_768, 65_536),
    batches: tuple[int, ...] = (512, 1024, 2048, 4096, 8192),
    l0s: tuple[float, ...] = (16, 32, 64, 128, 256),
    n_saes: tuple[int, ...] = (1, 2, 4, 8, 16),
    n_steps: int = 8,
    rounds: int = 7,
    discard: int = 1,
    d_sae: int = 8192,
    batch: int = 2048,
    l0: float = 64,
    threads: int = os.cpu_count() or 1,
    out: Path = RESULTS,
) -> None:
    """Time steps and runs and write scaling.md.

    Parameters
    ----------
    archs
        Architectures; runs of many SAEs train the first.
    d_saes
        Numbers of latents.
    batches
        Tokens in a step.
    l0s
        Active latents on a token.
    n_saes
        Numbers of SAEs on one stream.
    n_steps
        Steps of the runs of many SAEs.
    rounds
        Rounds that count.
    discard
        Rounds before them, to warm up.
    d_sae
        Latents where something else is varied.
    batch
        Tokens where something else is varied.
    l0
        L0 where something else is varied.
    threads
        Threads.
    out
        Folder of the result.
    """
    usual = [Spec(arch, d_sae, batch, l0) for arch in archs]
    with ExitStack() as stack:
        ours = start_workers(stack, ["ours"], threads)["ours"]
        parts = [
            f"Real activations, float32. Median of {rounds} interleaved rounds; ratios: median (quartiles) in a round.",
            "## Latents",
            sweep(ours, [spec.having(d_sae=n) for spec in usual for n in d_saes], rounds, discard),
            "## Batch",
            sweep(ours, [spec.having(batch=n) for spec in usual for n in batches], rounds, discard),
            "## L0",
            sweep(ours, [spec.having(l0=n) for spec in usual for n in l0s], rounds, discard),
            "## SAEs on one stream",
        ]
    torch.set_num_threads(threads)
    parts += many_saes(usual[0], n_saes, n_steps)
    write_result(out, "Scaling", parts, ours.versions, threads)


def sweep(ours: Worker, specs: Sequence[Spec], rounds: int, discard: int) -> str:
    """Time steps at some shapes, and the encoder products of these shapes."""
    measured = {spec: ours.l0(spec) for spec in specs}
    products = {spec: Spec("encoder_product", spec.d_sae, spec.batch, 0) for spec in specs}
    every = dict.fromkeys([*specs, *products.values()])
    seconds = interleave({spec: turn(ours, spec) for spec in every}, rounds, discard)
    for spec in every:
        ours.drop(spec)
    rows = [
        [
            spec.arch,
            f"{spec.d_sae:,}",
            f"{spec.batch:,}",
            f"{measured[spec]:.1f}",
            ms(seconds[spec]),
            f"{1e6 * statistics.median(seconds[spec]) / spec.batch:.0f}",
            ms(seconds[products[spec]]),
            ratio(seconds[spec], seconds[products[spec]]),
        ]
        for spec in specs
    ]
    return table(
        rows,
        ["architecture", "d_sae", "batch", "L0", "step, ms", "µs a token", "encoder product, ms", "step / product"],
    )


def many_saes(spec: Spec, n_saes: Sequence[int], n_steps: int) -> list[str]:
    """Time whole runs with more and more SAEs."""
    lm, site = load_demo()
    timed_run(lm, site, spec, 1, 1)  # warms up
    runs = {n: timed_run(lm, site, spec, n, n_steps) for n in n_saes}
    alone = runs[1][0] if 1 in runs else timed_run(lm, site, spec, 1, n_steps)[0]
    rows = [
        [
            f"{n}",
            f"{total:.1f}",
            f"{n * alone:.1f}",
            f"{n * alone / total:.2f}",
            f"{1000 * steps[1] / n_steps:.0f}" if n > 1 else "",
            f"{1000 * steps[-1] / n_steps:.0f}",
            f"{steps[-1] / steps[1]:.3f}" if n > 1 else "",
        ]
        for n, (total, steps) in runs.items()
    ]
    return [
        f"{spec.arch}, d_sae {spec.d_sae:,}, batch {spec.batch:,}, L0 {spec.l0:g}: {n_steps} steps on "
        f"{n_steps * spec.batch:,} activations of Gemma 3 270M, layer 9, in contexts of {CONTEXT_SIZE}, each used once."
        " Separate runs: as many times the run of one SAE, its own capture included. Loading the language model, which "
        "separate runs would repeat, is not counted.",
        table(
            rows,
            [
                "SAEs",
                "one run, s",
                "separate runs, s",
                "separate / one",
                "2nd, ms a step",
                "last, ms a step",
                "last / 2nd",
            ],
        ),
    ]


def timed_run(lm: LanguageModel, site: Site, spec: Spec, n: int, n_steps: int) -> tuple[float, list[float]]:
    """Seconds of one run with n SAEs, and of the steps of each."""
    options, recipe = settle(ArchSpec(name=spec.arch), "short")
    config = SAEConfig(d_in=site.d_in, d_sae=spec.d_sae, l0=spec.l0, options=options)
    at = crossovers(site.d_in, spec.d_sae, spec.batch, lm.device)
    settings = StepSettings(n_steps, spec.batch, lm.device, crossovers=at)
    saes = [ARCHITECTURES[spec.arch](config) for _ in range(n)]
    start = time.perf_counter()
    buffer = training_buffer(lm, site, n_steps * spec.batch, spec.batch, Progress(quiet=True))
    trainers = [SAETrainer(f"{i}", sae, (site, 0), recipe, settings) for i, sae in enumerate(saes)]
    for trainer in trainers:
        trainer.initialise(buffer.mean[site], buffer.sample(site, INIT_SAMPLE))
    train(trainers, buffer, Progress(quiet=True))
    return time.perf_counter() - start, [trainer.seconds for trainer in trainers]


if __name__ == "__main__":
    sys.exit(app())
