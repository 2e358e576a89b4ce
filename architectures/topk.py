"""TopK SAE (Gao et al. 2024, arXiv 2406.04093): the k largest pre-activations of a token, and nothing to tune.

f = ReLU(top_k((x - b_dec) W_enc + b_enc))      so L0 <= k
loss = mean||x - x_hat||^2 + aux_coeff AuxK     (`sae_bench.saes.top_k`)
"""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from sae_bench import Knob, Loss, Step, TopKAutoencoder, reconstruction_loss, register_architecture


@register_architecture("topk")
class TopK(TopKAutoencoder):
    nonlinearity = "topk"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"b_dec_init": "geometric_median", "dead_after": 10_000_000},
        "short": {"b_enc_init": "zeros"},
    }
    knobs: ClassVar[dict[str, Knob]] = {"aux_coeff": Knob(1 / 256, 1 / 2), "dead_after": Knob(0.01, 0.2)}

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        f, f_dead = self.select_largest(x, step)
        x_hat = self.decode(f)
        error, auxiliary = reconstruction_loss(x, x_hat), self.aux_k(x, x_hat, f_dead)
        total = error + self.options.aux_coeff * auxiliary
        return Loss(total, x_hat, f, {"reconstruction": error, "aux_k": auxiliary})
