"""Where dense products overtake sparse ones: measured once for each machine, device and shape, then remembered.

The two kinds of product give the same values up to rounding, so a run that is to be repeated bit by bit must make the
same choice each time. That is why the measurement is kept, in the cache folder, and not taken anew at every start.
"""

import json
import logging
import math
import platform
import time
from pathlib import Path
from statistics import NormalDist

import torch

from sae_bench.records.files import write_json
from sae_bench.records.names import cache_folder
from sae_bench.saes.active import Kernels, decode, kernels, latent_major, select

log = logging.getLogger(__name__)

DENSITIES = (0.05, 0.15)
"""Shares of active pairs that sparse products are timed at, not far from where dense ones usually overtake them."""

N_ROUNDS = 4


def dense_above(d_in: int, d_sae: int, n_tokens: int, device: torch.device) -> float:
    """The share of active pairs above which dense products are the faster ones."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    shape = f"{d_in}x{d_sae}x{n_tokens}"
    key = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {shape}"
    path = cache_folder() / "kernel_choice.json"
    known = _remembered(path)
    if key not in known:
        found = measure(d_in, d_sae, n_tokens, device)
        known = {key: found} | _remembered(path)  # read again: another run may have been faster, and then it decides
        write_json(path, known)
    return known[key]


def _remembered(path: Path) -> dict[str, float]:
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except json.JSONDecodeError:
        log.warning("%s is damaged: measuring again", path)
        return {}


def measure(d_in: int, d_sae: int, n_tokens: int, device: torch.device) -> float:
    """Time what a training step does with an active set, forward and backward, both ways.

    Sparse time grows with the number of pairs and dense time does not: they meet where the line through two sparse
    times reaches the dense one.
    """
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(n_tokens, d_in, device=device, generator=generator)
    W_dec = torch.randn(d_sae, d_in, device=device, generator=generator).requires_grad_()
    W_enc = latent_major(W_dec.detach().T / math.sqrt(d_in)).requires_grad_()  # z is standard normal
    b_enc = torch.zeros(d_sae, device=device, requires_grad=True)

    def seconds(choice: Kernels, density: float) -> float:
        """How long forward and backward take."""
        cut = NormalDist().inv_cdf(1 - density)
        _wait_for(device)
        start = time.perf_counter()
        with kernels(choice):
            decode(select(x, W_enc, b_enc, lambda z: z > cut), W_dec).square().sum().backward()
        _wait_for(device)
        return time.perf_counter() - start

    cases: list[tuple[Kernels, float]] = [("sparse", DENSITIES[0]), ("sparse", DENSITIES[1]), ("dense", DENSITIES[1])]
    rounds = [[seconds(*case) for case in cases] for _ in range(N_ROUNDS)]
    low, high, dense = (min(times[i] for times in rounds[1:]) for i in range(len(cases)))  # the first round warms up
    slope = (high - low) / (DENSITIES[1] - DENSITIES[0])
    if slope <= 0 or dense <= low:  # too small, or too noisy, to tell
        return DENSITIES[0] if dense <= low else 1.0
    return min(1.0, DENSITIES[0] + (dense - low) / slope)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
