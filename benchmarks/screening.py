"""Screened and exact selection side by side over a training: do they keep the same pairs, and do losses stay together?

    python benchmarks/screening.py

Two trainings of every architecture on the same real activations, one screened, one exact. Before every step the weights
of the screened one also select exactly: pairs that differ are counted, and how far from the border they lie. The losses
of the two trainings are compared step by step.
"""

import os
import sys
from pathlib import Path

import torch
from common import RESULTS, activations, application, table, write_result
from safetensors.torch import load_file
from torch import Tensor
from workers.ours import Ours
from workers.protocol import Spec

from sae_bench import SparseAutoencoder
from sae_bench.saes.active import as_active
from sae_bench.saes.kernels import kernels

ARCHS = ("relu", "gated", "topk", "jumprelu")

app = application(__doc__)


@app.default
def main(
    *, steps: int = 300, d_sae: int = 4096, batch: int = 1024, l0: float = 32, threads: int = os.cpu_count() or 1,
    out: Path = RESULTS,
) -> None:  # fmt: skip
    """Train and write screening.md.

    Parameters
    ----------
    steps
        Steps of every training.
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
    x = load_file(activations())["x"]
    rows = [compared(x, steps, Spec(arch, d_sae, batch, l0, "sparse")) for arch in ARCHS]
    names = ["architecture", "pairs kept a token", "pairs that differ", "their distance from the border, in roundings",
             "last loss", "largest difference of losses"]  # fmt: skip
    about = (
        f"{steps} steps, d_sae {d_sae}, batch {batch}, L0 {l0:g}, real activations of Gemma 3 270M, layer 9. A "
        "rounding is 2^-24 |x| |w|, what one float32 operation can be off by; a sum of 640 products is off by some of "
        "them. The difference of losses is relative, the largest of all steps."
    )
    write_result(
        out, "Screened and exact selection", [about, table(rows, names)], {"torch": torch.__version__}, threads
    )


def compared(x: Tensor, steps: int, spec: Spec) -> list[str]:
    """A row of the table."""
    screened, exact = (Ours(x, spec, screening=way) for way in ("on", "off"))
    batches = x.split(spec.batch)
    n_kept = n_differ = 0
    farthest = apart = 0.0
    losses = (0.0, 0.0)
    for step in range(steps):
        batch = batches[step % len(batches)]
        kept, differ, distance = differences(screened.sae, batch)
        n_kept, n_differ, farthest = n_kept + kept, n_differ + differ, max(farthest, distance)
        for subject in (screened, exact):
            subject.trainer.step(batch, step, logged=True)
        one, other = losses = tuple(subject.trainer.log[-1]["loss"] for subject in (screened, exact))
        apart = max(apart, abs(one / other - 1))
    per_token = n_kept / steps / spec.batch
    return [spec.arch, f"{per_token:.1f}", str(n_differ), f"{farthest:.1f}", f"{losses[0]:.4f}", f"{apart:.1e}"]


@torch.no_grad()
def differences(sae: SparseAutoencoder, x: Tensor) -> tuple[int, int, float]:
    """Pairs that exact selection keeps of a batch, pairs that screening keeps or leaves unlike it, and how far off.

    That is the distance of their values from the threshold, or, of a token's largest, from each other.
    """
    sets = []
    for way in ("off", "on"):
        with kernels("sparse", screening=way):  # type: ignore[arg-type]
            token, latent, _ = as_active(sae.encode(x)).pairs()
        sets.append(token * sae.config.d_sae + latent)
    both, counts = torch.cat(sets).unique(return_counts=True)
    token, latent = (alone := both[counts == 1]) // sae.config.d_sae, alone % sae.config.d_sae
    if not len(alone):
        return len(sets[0]), 0, 0.0
    centred = (x - sae.b_dec if sae.pre_encoder_bias else x)[token].double()
    z = (centred * sae.W_enc.T[latent].double()).sum(1) + sae.b_enc[latent]
    if sae.control == "k":  # what was kept instead lies as near
        border = torch.stack([z[token == t].mean() for t in token])
    else:
        border = getattr(sae, "theta", torch.zeros_like(sae.b_enc))[latent].double()
    unit = 2.0**-24 * centred.norm(dim=1) * sae.W_enc.norm(dim=0)[latent]
    return len(sets[0]), len(alone), float(((z - border).abs() / unit).max())


if __name__ == "__main__":
    sys.exit(app())
