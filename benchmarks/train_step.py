"""One whole training step of every architecture: ours, the peers', the dense twin's, beside the encoder product alone.

    python benchmarks/setup_peers.py     # once
    python benchmarks/train_step.py

Every trainer is a process that waits for its turn, and every round times one step of each architecture of each, so that
whatever slows the machine down slows all of them. Ratios are taken within a round.
"""

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from common import RESULTS, application, interleave, metadata, ms, ratio, start_workers, table, turn, write_result
from workers.protocol import Spec

ARCHS = ("relu", "gated", "topk", "jumprelu", "batchtopk", "matryoshka")
TRAINERS = {
    "ours": ("ours", "auto"),
    "dense twin": ("dense", "auto"),
    "SAELens": ("sae_lens", "auto"),
    "dictionary_learning": ("dictionary_learning", "auto"),
    "sparsify": ("sparsify", "auto"),
    "SAELens, sparse": ("sae_lens", "sparse"),
}
"""How tables call it -> worker and kernels."""

OURS, *OTHERS = TRAINERS
ONLY_TOPK = ("sparsify", "SAELens, sparse")

app = application(__doc__)


@app.default
def main(
    *,
    rounds: int = 12,
    discard: int = 3,
    d_sae: int = 8192,
    batch: int = 2048,
    l0: float = 64,
    threads: int = os.cpu_count() or 1,
    out: Path = RESULTS,
) -> None:
    """Time steps and write train_step.md.

    Parameters
    ----------
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
        Threads of every worker.
    out
        Folder of the result.
    """
    specs = {
        (trainer, arch): Spec(arch, d_sae, batch, l0, kernels)
        for arch in ARCHS
        for trainer, (_, kernels) in TRAINERS.items()
        if trains(trainer, arch)
    }
    with ExitStack() as stack:
        workers = start_workers(stack, dict.fromkeys(worker for worker, _ in TRAINERS.values()), threads)
        worker_of = {(trainer, arch): workers[TRAINERS[trainer][0]] for trainer, arch in specs}
        l0s = {key: worker_of[key].l0(spec) for key, spec in specs.items()}
        turns = {key: turn(worker_of[key], spec) for key, spec in specs.items()}
        turns[OURS, "product"] = turn(workers["ours"], Spec("encoder_product", d_sae, batch, 0))
        seconds = interleave(turns, rounds, discard)
        versions = {name: number for worker in workers.values() for name, number in worker.versions.items()}
    product = seconds[OURS, "product"]
    write_result(
        out,
        "One training step",
        [
            f"d_sae {d_sae}, batch {batch}, float32, real activations of Gemma 3 270M, layer 9, residual stream "
            f"({metadata()['corpus']}). Median milliseconds of {rounds} interleaved rounds; the encoder product alone "
            f"takes {ms(product)}. Dense twin: ours in plain torch. SAELens, sparse: with use_sparse_activations, and "
            "without rescaling by decoder norms, with which that fails on a CPU.",
            grid(TRAINERS, lambda trainer, arch: ms(seconds[trainer, arch])),
            "How many times as long as ours: median (quartiles) of the ratios within a round.",
            grid(OTHERS, lambda trainer, arch: ratio(seconds[trainer, arch], seconds[OURS, arch])),
            "Ours, in encoder products.",
            grid([OURS], lambda trainer, arch: ratio(seconds[trainer, arch], product)),
            "Measured L0.",
            grid(TRAINERS, lambda trainer, arch: f"{l0s[trainer, arch]:.1f}"),
            "Is jumprelu cheaper to train than gated and than topk, as its paper says? How many times as long as the "
            "same trainer's step of jumprelu.",
            grid(
                [trainer for trainer in TRAINERS if trainer not in ONLY_TOPK],
                lambda trainer, arch: ratio(seconds[trainer, arch], seconds[trainer, "jumprelu"]),
            ),
        ],
        versions,
        threads,
    )


def trains(trainer: str, arch: str) -> bool:
    """Whether a trainer has an architecture."""
    return arch == "topk" or trainer not in ONLY_TOPK


def grid(trainers: Iterable[str], cell: Callable[[str, str], str]) -> str:
    """A table of architectures by trainers."""
    rows = [[arch, *(cell(trainer, arch) if trains(trainer, arch) else "" for trainer in trainers)] for arch in ARCHS]
    return table(rows, ["architecture", *trainers])


if __name__ == "__main__":
    sys.exit(app())
