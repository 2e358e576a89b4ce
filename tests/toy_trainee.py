"""Trainees of the built-in architectures on toy activations: d_in = 6, 24 latents, no language model behind them."""

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from sae_bench import ARCHITECTURES, SAEConfig
from sae_bench.lm.sites import Site
from sae_bench.runs.config import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.training.buffer import ActivationStream
from sae_bench.training.trainer import Trainee

SITE = Site(0, "resid_post", "layers.0", "output", 6)
BUILT_IN = ("relu", "gated", "topk", "jumprelu")


def activations(seed: int, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed) if device == "cpu" else None  # a fake GPU draws nothing
    x = torch.randn(40, 6, generator=generator, device=device) + 2
    return x / x.square().sum(1).mean().sqrt()


class Sample(ActivationStream):
    """A stream as a trainee sees one before the first step, which has no language model behind it."""

    n_steps = 50

    def __init__(self, x: Tensor) -> None:
        self.x, self.batch_size, self.mean = x, len(x), {SITE: x.mean(0)}
        self.lm = cast(Any, SimpleNamespace(device=x.device))

    def sample(self, site: Site, n: int) -> Tensor:
        return self.x[:n]


def started(arch: str, device: str = "cpu", preset: Any = "short", **settings: Any) -> Trainee:
    """A trainee before its first step; `arch` with or without settings, as on the command line."""
    spec = ArchSpec.parse(arch)
    options, recipe = settle(spec, preset)
    with torch.device(device):
        sae = ARCHITECTURES[spec.name](SAEConfig(d_in=6, d_sae=24, l0=3, seed=1, options=options))
    trainee = Trainee("one", sae, SITE, 0, recipe, **settings)
    trainee.start(Sample(activations(0, device)))
    return trainee


def trained(arch: str, **settings: Any) -> Trainee:
    trainee = started(arch, **settings)
    for step in range(50):
        trainee.step(activations(step), step, logged=step == 49)
    return trainee
