"""Our step at every density: sparse, dense and automatic products, against the dense twin.

    python benchmarks/density.py

Biases and thresholds are set so that every latent fires on the same share of the tokens; for topk, k is that share.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from common import D_IN, RESULTS, application, interleave, ms, ratio, start_workers, table, turn, write_result
from workers.protocol import Spec

from sae_bench.saes.kernel_choice import crossovers

app = application(__doc__)


@app.default
def main(
    *,
    archs: tuple[str, ...] = ("relu", "jumprelu"),
    percents: tuple[float, ...] = (0.1, 0.5, 1, 2, 5, 10, 20, 40, 60),
    rounds: int = 7,
    discard: int = 1,
    d_sae: int = 8192,
    batch: int = 2048,
    threads: int = os.cpu_count() or 1,
    out: Path = RESULTS,
) -> None:
    """Time steps and write density.md.

    Parameters
    ----------
    archs
        Architectures: relu and gated select above zero, jumprelu above a threshold, topk the k largest.
    percents
        Densities, as percentages of active (token, latent) pairs.
    rounds
        Rounds that count, at each density.
    discard
        Rounds before them, to warm up.
    d_sae
        Latents.
    batch
        Tokens in a step.
    threads
        Threads of every worker.
    out
        Folder of the result.
    """
    torch.set_num_threads(threads)
    crossover = crossovers(D_IN, d_sae, batch, torch.device("cpu")).dense_above
    rows = []
    with ExitStack() as stack:
        workers = start_workers(stack, ("ours", "dense"), threads)
        for arch in archs:
            for percent in percents:
                wanted = max(1, round(percent / 100 * d_sae))
                spec = Spec(arch, d_sae, batch, wanted)
                subjects = {
                    **{
                        kernels: (workers["ours"], spec.having(kernels=kernels))
                        for kernels in ("auto", "sparse", "dense")
                    },
                    "twin": (workers["dense"], spec),
                }
                l0 = workers["ours"].l0(spec)
                seconds = interleave({name: turn(*subject) for name, subject in subjects.items()}, rounds, discard)
                for worker, subject in subjects.values():
                    worker.drop(subject)
                ratios = (ratio(seconds["twin"], seconds["auto"]), ratio(seconds["dense"], seconds["sparse"]))
                rows.append([arch, f"{percent:g}%", f"{l0:,.1f}", *map(ms, seconds.values()), *ratios])
        versions = workers["ours"].versions
    headers = ["architecture", "density", "L0", "auto", "sparse", "dense", "twin", "twin / auto", "dense / sparse"]
    write_result(
        out,
        "Density",
        [
            f"d_sae {d_sae}, batch {batch}, float32, real activations. Median milliseconds of {rounds} interleaved "
            "rounds; ratios: median (quartiles) within a round. Above 1, `auto` is faster than the dense twin. On this "
            f"machine `auto` takes dense products above {crossover:.1%} active pairs.",
            table(rows, headers),
        ],
        versions,
        threads,
    )


if __name__ == "__main__":
    sys.exit(app())
