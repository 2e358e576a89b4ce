"""Where one way to compute the same overtakes another: measured once for each machine, device and shape.

The ways give the same values up to rounding, so a run that is to be repeated bit by bit must make the
same choice each time. That is why the measurement is kept, in the cache folder, and not taken anew at every start.
"""

import math
import platform
import time
from pathlib import Path
from statistics import NormalDist

import torch

from sae_bench.records.kept import keep, read_kept
from sae_bench.records.names import cache_folder
from sae_bench.saes.active import decode, latent_major, select
from sae_bench.saes.kernels import Crossovers, Kernels, Screening, kernels
from sae_bench.saes.rules import Above

DENSITIES = (0.05, 0.15)
"""Shares of active pairs that sparse products are timed at, not far from where dense ones usually overtake them."""

SCREENED = (0.005, 0.02)
"""Shares of active pairs that screening is timed at."""

N_ROUNDS = 4


def crossovers(d_in: int, d_sae: int, n_tokens: int, device: torch.device) -> Crossovers:
    """Where dense products overtake sparse ones, and exact selection overtakes screening."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    shape = f"{d_in}x{d_sae}x{n_tokens}"
    key = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {shape}"
    path = cache_folder() / "crossovers.json"
    known = _remembered(path)
    if key not in known:
        found = measure(d_in, d_sae, n_tokens, device)._asdict()
        known = {key: found} | _remembered(path)  # read again: another run may have been faster, and then it decides
        keep(path, known)
    return Crossovers(**known[key])


def _remembered(path: Path) -> dict[str, dict[str, float]]:
    # Earlier versions kept one number for each machine and shape.
    fields = set(Crossovers._fields)
    return {key: at for key, at in read_kept(path).items() if isinstance(at, dict) and set(at) == fields}


@torch.enable_grad()  # an evaluation asks, too
def measure(d_in: int, d_sae: int, n_tokens: int, device: torch.device) -> Crossovers:
    """Time what a training step does with an active set, forward and backward, in every way.

    Sparse and screened times grow with the number of pairs and those of the other ways do not: they meet where the line
    through two times of the one reaches the time of the other.
    """
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(n_tokens, d_in, device=device, generator=generator)
    W_dec = torch.randn(d_sae, d_in, device=device, generator=generator).requires_grad_()
    W_enc = latent_major(W_dec.detach().T / math.sqrt(d_in)).requires_grad_()  # z is standard normal
    b_enc = torch.zeros(d_sae, device=device, requires_grad=True)
    b_pre = torch.zeros(d_in, device=device)

    def seconds(choice: Kernels, density: float, screening: Screening = "off") -> float:
        """How long forward and backward take."""
        rule = Above(NormalDist().inv_cdf(1 - density))
        _wait_for(device)
        start = time.perf_counter()
        with kernels(choice, screening=screening):
            decode(select(x, W_enc, b_enc, rule, b_pre), W_dec).square().sum().backward()
        _wait_for(device)
        return time.perf_counter() - start

    few, some = SCREENED
    cases: list[tuple[Kernels, float, Screening]] = [
        ("sparse", DENSITIES[0], "off"), ("sparse", DENSITIES[1], "off"), ("dense", DENSITIES[1], "off"),
        ("sparse", few, "off"), ("sparse", some, "off"), ("sparse", few, "on"), ("sparse", some, "on"),
    ]  # fmt: skip
    rounds = [[seconds(*case) for case in cases] for _ in range(N_ROUNDS)]
    low, high, dense, *rest = (min(times[i] for times in rounds[1:]) for i in range(len(cases)))  # the first warms up
    dense_above = min(1.0, _meeting(DENSITIES, (dense - low, dense - high), 1.0 if dense > low else DENSITIES[0]))
    exact, screened = rest[:2], rest[2:]
    gains = (exact[0] - screened[0], exact[1] - screened[1])
    screen_below = 0.0 if gains[0] <= 0 else min(1.0, _meeting(SCREENED, gains, 1.0))
    return Crossovers(dense_above, screen_below)


def _meeting(densities: tuple[float, float], gains: tuple[float, float], unclear: float) -> float:
    """The density at which a gain that was timed at two densities has shrunk to nothing."""
    (low, high), (first, second) = densities, gains
    if first <= 0 or second >= first:  # too small, or too noisy, to tell
        return unclear
    return low + (high - low) * first / (first - second)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
