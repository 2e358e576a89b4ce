"""Trainers of the built-in architectures on toy activations: d_in = 6, 24 latents, no language model behind them."""

from typing import Any

import torch
from torch import Tensor

from sae_bench import ARCHITECTURES, SAEConfig, SparseAutoencoder
from sae_bench.lm.sites import Site
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.training.recipe import Recipe
from sae_bench.training.trainer import SAETrainer, StepSettings

SITE = Site(0, "resid_post", "layers.0", "output", 6)
BUILT_IN = ("relu", "gated", "topk", "jumprelu", "batchtopk", "matryoshka", "p_anneal")


def activations(seed: int, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed) if device == "cpu" else None  # a fake GPU draws nothing
    x = torch.randn(40, 6, generator=generator, device=device) + 2
    return x / x.square().sum(1).mean().sqrt()


def started(arch: str, device: str = "cpu", preset: Any = "short", **settings: Any) -> SAETrainer:
    """A trainer before its first step; `arch` with or without settings, as on the command line."""
    spec = ArchSpec.parse(arch)
    options, recipe = settle(spec, preset)
    with torch.device(device):
        sae = ARCHITECTURES[spec.name](SAEConfig(d_in=6, d_sae=24, l0=3, seed=1, options=options))
    return begun(sae, recipe, activations(0, device), **settings)


def begun(sae: SparseAutoencoder, recipe: Recipe, x: Tensor, **settings: Any) -> SAETrainer:
    """A trainer of 50 steps with initial values from a batch."""
    trainer = SAETrainer("one", sae, (SITE, 0), recipe, StepSettings(50, len(x), x.device, **settings))
    trainer.initialise(x.mean(0), x)
    return trainer


def trained(arch: str, **settings: Any) -> SAETrainer:
    trainer = started(arch, **settings)
    for step in range(50):
        trainer.step(activations(step), step, logged=step == 49)
    return trainer
