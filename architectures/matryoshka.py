"""Matryoshka SAE (Bussmann et al. 2025, arXiv 2503.17547): the first latents must do without the others.

    f as batchtopk's: one BatchTopK over all latents, one threshold at inference
    x_hat_m = f_{1..m} W_dec,{1..m} + b_dec         for nested dictionaries of m = F/32, 3F/32, 7F/32, 15F/32, F latents
    loss = mean_m mean||x - x_hat_m||^2 + aux_coeff AuxK        of the error that all latents together leave

Each dictionary adds a group of latents to the one before, so that all x_hat_m are running sums of what the groups add,
at the cost of one decoder product in all. A group of less than one latent is left out.

The paper writes a sum over the dictionaries; the first author's code takes a mean, as this does, but counts b_dec alone
as a dictionary more. The sum is as many times as large, and leaves AuxK that many times as little weight. SAELens sums;
dictionary_learning takes the mean of errors that it has weighted by 1 / G before, so that its loss of G dictionaries is
a G-th of this.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from sae_bench import (
    BatchTopKAutoencoder,
    BatchTopKOptions,
    Knob,
    Loss,
    SAEConfig,
    Step,
    decode_groups,
    reconstruction_loss,
    register_architecture,
)


class MatryoshkaOptions(BatchTopKOptions):
    group_shares: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
    """Each group's share of the latents, but for the last group's, which is the rest."""


@register_architecture("matryoshka")
class Matryoshka(BatchTopKAutoencoder):
    options_type = MatryoshkaOptions
    options: MatryoshkaOptions
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # The first author's code (github.com/bartbussmann/matryoshka_sae): dead after 20 batches of 4,096 tokens.
        "paper": {"lr": 3e-4, "betas": (0.9, 0.99), "lr_warmup": 0, "dead_after": 81_920},
        "short": {"b_enc_init": "zeros", "threshold_start": 0.2, "threshold_rate": 0.05},
    }
    knobs: ClassVar[dict[str, Knob]] = {"aux_coeff": Knob(1 / 256, 1 / 2), "dead_after": Knob(0.01, 0.2)}

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        sizes = [int(share * config.d_sae) for share in self.options.group_shares]
        self.group_sizes = [size for size in (*sizes, config.d_sae - sum(sizes)) if size]

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        super().check(config)
        shares = MatryoshkaOptions(**config.options).group_shares
        if sum(shares) >= 1 or min(shares, default=1) <= 0:
            raise ValueError(f"group_shares = {shares}: give numbers above 0 whose sum is below 1")

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        f, f_dead = self.select_largest(x, step)
        x_hats = decode_groups(f, self.W_dec, self.group_sizes).cumsum(1) + self.b_dec  # [B, G, D]
        x_hat = x_hats[:, -1]
        nested = (x[:, None] - x_hats).square().sum(2).mean()
        auxiliary = self.aux_k(x, x_hat, f_dead)
        total = nested + self.options.aux_coeff * auxiliary
        terms = {"reconstruction": reconstruction_loss(x, x_hat.detach()), "nested": nested, "aux_k": auxiliary}
        return Loss(total, x_hat, f, terms, minima={"least_kept": f.least_positive()})
