"""Our training step, whole: loss, backward, projection, fused Adam, renormalisation and the trainer's statistics.

The buffer is replaced by the shared activations; everything else is `sae_bench.training.trainer.SAETrainer` as a run
uses it, with the `short` preset. L0 is set by quantiles of the data, and stays because the learning rate is still
warming up.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from sae_bench import ARCHITECTURES, SAEConfig, SparseAutoencoder, Step, active_per_token
from sae_bench.lm.sites import Site
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.saes.kernel_choice import crossovers
from sae_bench.saes.kernels import Kernels
from sae_bench.training.initial_values import INIT_SAMPLE
from sae_bench.training.trainer import SAETrainer, StepSettings
from workers.protocol import N_STEPS, QUANTILE_TOKENS, Spec, serve_steps, upper_quantile

SITE = Site(layer=9, kind="resid_post", path="", side="output", d_in=0)


class Ours:
    """An SAE in the trainer's hands; `changes` are to the settings of its steps."""

    def __init__(self, x: Tensor, spec: Spec, **changes: Any) -> None:
        options, recipe = settle(ArchSpec(name=spec.arch), "short")
        config = SAEConfig(d_in=x.shape[1], d_sae=spec.d_sae, l0=spec.l0, options=options)
        at = crossovers(x.shape[1], spec.d_sae, spec.batch, x.device) if spec.kernels == "auto" else None
        self.sae = ARCHITECTURES[spec.arch](config)
        settings = StepSettings(N_STEPS, spec.batch, x.device, cast(Kernels, spec.kernels), at)
        settings = replace(settings, **changes)
        self.trainer = SAETrainer(spec.arch, self.sae, (SITE, 0), recipe, settings)
        self.trainer.initialise(x.mean(0), x[: min(INIT_SAMPLE, QUANTILE_TOKENS)])
        set_density(self.sae, x, spec.share)
        self.n_done = 0

    def step(self, x: Tensor) -> None:
        self.trainer.step(x, self.n_done, logged=False)
        self.n_done += 1

    def l0(self, x: Tensor) -> float:
        at = Step(torch.zeros(()), torch.empty(0, dtype=torch.long))
        kept = self.sae.loss(x, at).latents if self.sae.selects_by_batch else self.sae.encode(x)
        return float(active_per_token(kept).float().mean())


class EncoderProduct:
    """The one product that no sparse autoencoder can do without: x W_enc + b_enc, into memory that is there already."""

    def __init__(self, x: Tensor, spec: Spec) -> None:
        self.W_enc = torch.randn(spec.d_sae, x.shape[1]).T
        self.b_enc = torch.zeros(spec.d_sae)
        self.z = torch.empty(spec.batch, spec.d_sae)

    def step(self, x: Tensor) -> None:
        torch.addmm(self.b_enc, x, self.W_enc, out=self.z)

    def l0(self, x: Tensor) -> float:
        return float("nan")


@torch.no_grad()
def set_density(sae: SparseAutoencoder, x: Tensor, share: float) -> None:
    """Let every latent fire on this share of the tokens, by thresholds where there are any, else by b_enc."""
    if sae.control == "k":
        return
    level = upper_quantile(x - sae.b_dec if sae.pre_encoder_bias else x, sae.W_enc, share)
    threshold = torch.zeros_like(level)
    if isinstance(theta := getattr(sae, "theta_parameter", None), Tensor):
        threshold = level.clamp(min=cast(Any, sae).least_theta)
        theta.copy_(threshold.log() if cast(Any, sae).options.train_log_theta else threshold)
    sae.b_enc.copy_(threshold - level)


def make(x: Tensor, spec: Spec) -> Ours | EncoderProduct:
    return EncoderProduct(x, spec) if spec.arch == "encoder_product" else Ours(x, spec)


if __name__ == "__main__":
    serve_steps(make, ["torch", "sae-arch-bench"])
