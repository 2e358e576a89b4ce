"""Where dense products overtake sparse ones: measured once for each machine, device and shape, then remembered.

The two kinds of product give the same values up to rounding, so a run that is to be repeated bit by bit must make the
same choice each time. That is why the measurement is kept, in the cache folder, and not taken anew at every start.
"""

import json
import logging
import os
import platform
import time
from pathlib import Path

import torch
from torch.nn import functional

from sae_bench.active import Kernels, Pairs, inner_products, kernels, rows, rows_transposed
from sae_bench.paths import cache_folder

log = logging.getLogger(__name__)

DENSITY = 0.02
"""Share of active pairs that both kinds of product are timed at."""

N_ROUNDS = 3


def dense_above(d_in: int, d_sae: int, n_tokens: int, device: torch.device) -> float:
    """The share of active pairs above which dense products are the faster ones."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    shape = f"{d_in}x{d_sae}x{n_tokens}"
    key = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {shape}"
    path = cache_folder() / "crossover.json"
    known = _remembered(path)
    if key not in known:
        found = measure(d_in, d_sae, n_tokens, device)
        known = {key: found} | _remembered(path)  # read again: another run may have been faster, and then it decides
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True))
        os.replace(temporary, path)
    return known[key]


def _remembered(path: Path) -> dict[str, float]:
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except json.JSONDecodeError:
        log.warning("%s is damaged: measuring again", path)
        return {}


def measure(d_in: int, d_sae: int, n_tokens: int, device: torch.device) -> float:
    """Time one decode, forward and backward, both ways.

    Sparse time grows with the number of pairs and dense time hardly does, so the two meet at DENSITY times the ratio
    of the dense to the sparse time.
    """
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(n_tokens, d_in, device=device, generator=generator)
    W = torch.randn(d_sae, d_in, device=device, generator=generator)
    keep = torch.rand(n_tokens, d_sae, device=device, generator=generator) < DENSITY
    token, latent = keep.nonzero(as_tuple=True)
    offsets = functional.pad(torch.bincount(token, minlength=n_tokens).cumsum(0), (1, 0))
    values = torch.ones(len(latent), device=device)

    def seconds(choice: Kernels) -> float:
        times = []
        for _ in range(N_ROUNDS):  # the first round warms up, the best one counts
            with kernels(choice):
                pairs = Pairs(latent, offsets, d_sae)
            _wait_for(device)
            start = time.perf_counter()
            rows(pairs, values, W)
            inner_products(pairs, x, W)
            rows_transposed(pairs, values, x)
            _wait_for(device)
            times.append(time.perf_counter() - start)
        return min(times)

    return min(1.0, DENSITY * seconds("dense") / seconds("sparse"))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
