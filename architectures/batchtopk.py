"""BatchTopK SAE (Bussmann et al. 2024, arXiv 2412.06410): k latents a token on average, where they are worth most.

    training    f = ReLU(z) on the k B largest z of a batch of B tokens,  z = (x - b_dec) W_enc + b_enc
    inference   f = z H(z - theta),  one theta for all latents
    loss = mean||x - x_hat||^2 + aux_coeff AuxK

theta is the mean over batches of the smallest positive value that a batch keeps, here an exponential moving average
(`sae_bench.saes.top_k`, AuxK too). Nothing holds the L0 of other text at k: it is measured like any other's. Once
folded this is a jumprelu whose thresholds are equal, and goes into files as that.

Where peers differ: SAELens begins its average at 0 and scales AuxK down where few latents are dead, whose z it does not
rectify; dictionary_learning divides AuxK by the variance of the error, and tells the dead from a count of 10M tokens.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from sae_bench import BatchTopKAutoencoder, Knob, Loss, Step, reconstruction_loss, register_architecture


@register_architecture("batchtopk")
class BatchTopK(BatchTopKAutoencoder):
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # The authors' code (github.com/bartbussmann/BatchTopK): Adam (.9, .99), dead after 5 batches of 4,096 tokens.
        "paper": {"lr": 3e-4, "betas": (0.9, 0.99), "lr_warmup": 0, "dead_after": 20_480},
        "short": {"b_enc_init": "zeros", "threshold_start": 0.2, "threshold_rate": 0.05},
    }
    knobs: ClassVar[dict[str, Knob]] = {"aux_coeff": Knob(1 / 256, 1 / 2), "dead_after": Knob(0.01, 0.2)}

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        f, f_dead = self.select_largest(x, step)
        x_hat = self.decode(f)
        error, auxiliary = reconstruction_loss(x, x_hat), self.aux_k(x, x_hat, f_dead)
        total = error + self.options.aux_coeff * auxiliary
        terms = {"reconstruction": error, "aux_k": auxiliary}
        return Loss(total, x_hat, f, terms, minima={"least_kept": f.least_positive()})
