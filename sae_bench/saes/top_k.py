"""What architectures that keep the largest pre-activations share: AuxK, and one threshold in the place of a batch.

**AuxK** (Gao et al. 2024, arXiv 2406.04093, appendix A.2): dead latents reconstruct what the living leave.

    aux = mean||e - e_hat||^2,  e = x - x_hat (no gradient),  e_hat = f_dead W_dec, without b_dec

f_dead is ReLU(z) on the k_aux largest z of a token among the dead latents, all of them where they are fewer, and z on
the largest |z| where f has a sign: that brings them back to life. Dead is for the trainer to say: no activation for the
recipe's number of tokens.

**BatchTopK** (Bussmann et al. 2024, arXiv 2412.06410): training keeps the k B largest z of a batch of B tokens,
inference what exceeds theta, the mean over batches of the smallest positive value that a batch keeps.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from sae_bench.saes.active import Active, KeepRule, decode
from sae_bench.saes.base import Nonlinearity, Options, SAEConfig, SparseAutoencoder, reconstruction_loss
from sae_bench.saes.rules import Above, Largest, LargestOfBatch
from sae_bench.saes.step import Step


class AuxKOptions(Options):
    aux_coeff: float = Field(default=1 / 32, ge=0)
    k_aux: int | None = Field(default=None, gt=0)
    """Dead latents a token may use; None: the power of two nearest d_in / 2."""


class AuxKAutoencoder(SparseAutoencoder):
    """Base of architectures with f = ReLU(z) on some largest z (z itself if `signed`), and AuxK in their loss."""

    control = "k"
    options_type: ClassVar[type[Options]] = AuxKOptions
    options: AuxKOptions

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.k_aux = self.options.k_aux or 2 ** round(math.log2(config.d_in / 2))

    def select_with_dead(
        self, x: Float[Tensor, "B D"], keep: KeepRule, dead: Int[Tensor, " n_dead"]
    ) -> tuple[Active, Active | None]:
        """ReLU(z) on the pairs that `keep` selects, and on those of AuxK; None where no latent is dead."""
        if not len(dead) or self.options.aux_coeff == 0:
            return self._rectified(self.select(x, keep)), None
        f, f_dead = self.select_all(x, (keep, Largest(self.k_aux, among=dead, signed=self.signed)))
        return self._rectified(f), self._rectified(f_dead)

    def _rectified(self, z: Active) -> Active:
        """ReLU(z), or z itself where f has a sign."""
        return z if self.signed else z.with_values(torch.relu(z.values), zero_at_zero=True)

    def aux_k(self, x: Float[Tensor, "B D"], x_hat: Float[Tensor, "B D"], f_dead: Active | None) -> Float[Tensor, ""]:
        """The auxiliary loss, without its coefficient; 0 where no latent is dead."""
        if f_dead is None:
            return x.new_zeros(())
        return reconstruction_loss((x - x_hat).detach(), decode(f_dead, self.W_dec))


class TopKAutoencoder(AuxKAutoencoder):
    """Base of architectures that keep the k largest z of each token, the largest |z| where f has a sign."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.k = int(config.sparsity)

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        check_whole_k(config)

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        return self._rectified(self.select(x, self._largest()))

    def select_largest(self, x: Float[Tensor, "B D"], step: Step) -> tuple[Active, Active | None]:
        """f, and that of AuxK: `select_with_dead` by the rule of each token."""
        return self.select_with_dead(x, self._largest(), step.dead)

    def _largest(self) -> Largest:
        return Largest(self.k, signed=self.signed)


class BatchTopKOptions(AuxKOptions):
    threshold_start: float = Field(default=1000, ge=0)
    """Steps, or share of the run, before theta is first estimated; by the last step at the latest."""
    threshold_rate: float = Field(default=1e-3, gt=0, le=1)
    """Weight of the newest batch in theta."""


class BatchTopKAutoencoder(AuxKAutoencoder):
    """Base of architectures that keep the k B largest z of a batch, and what exceeds theta once trained.

    theta is an exponential moving average, in float64, that begins with the first batch after a warm-up. A loss gives
    `least_kept` among its `minima`.
    """

    selects_by_batch = True
    options_type: ClassVar[type[Options]] = BatchTopKOptions
    options: BatchTopKOptions
    nonlinearity: ClassVar[Nonlinearity | None] = "jumprelu"
    stored_names: ClassVar[dict[str, str]] = {"theta": "threshold"}

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.theta = nn.Parameter(torch.zeros(config.d_sae), requires_grad=False)
        self.register_buffer("mean_least_kept", torch.full((), torch.inf, dtype=torch.float64))
        self.mean_least_kept: Float[Tensor, ""]
        """The average that theta is set to; infinite before it begins."""

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        if not 0 < config.sparsity <= config.d_sae:
            raise ValueError(f"k = {config.sparsity:g}: give a number above 0, at most the width, {config.d_sae}")

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        return self.select(x, Above(self.theta))  # theta >= 0, so what passes is above zero too

    def biases(self) -> list[Float[Tensor, " F"]]:
        return [self.b_enc, self.theta]

    def survey(self, parts: Sequence[Tensor]) -> list[LargestOfBatch]:
        return self.split(self._largest(sum(map(len, parts))), parts)

    def select_largest(self, x: Float[Tensor, "B D"], step: Step) -> tuple[Active, Active | None]:
        """f of training, and of AuxK: `select_with_dead` by the rule over the batch."""
        return self.select_with_dead(x, step.survey or self._largest(len(x)), step.dead)

    def _largest(self, n_tokens: int) -> LargestOfBatch:
        return LargestOfBatch(int(self.config.sparsity * n_tokens))

    def after_step(self, step: Step) -> None:
        is_last = step.number + 1 >= step.n_steps
        if not (is_last or step.is_past(self.options.threshold_start)):
            return
        least, before, rate = step.seen["least_kept"].double(), self.mean_least_kept, self.options.threshold_rate
        mean = torch.where(before.isinf(), least, (1 - rate) * before + rate * least)
        self.mean_least_kept.copy_(torch.where(least.isinf(), before, mean))  # a batch may keep nothing above zero
        self.theta.copy_(self.mean_least_kept.nan_to_num(0.0, posinf=0.0))


def check_whole_k(config: SAEConfig) -> None:
    """Raise ValueError where k, the number of latents that each token keeps, cannot be one."""
    if config.sparsity != int(config.sparsity) or not 0 < config.sparsity <= config.d_sae:
        raise ValueError(f"k = {config.sparsity:g}: give a whole number from 1 to the width, {config.d_sae}")
