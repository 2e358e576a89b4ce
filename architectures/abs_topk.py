"""AbsTopK SAE (Zhu et al. 2025, arXiv 2510.00404): a token's k largest pre-activations by size, with their signs.

    f = z on the k largest |z|, z = (x - b_dec) W_enc + b_enc       f < 0 is as active as f > 0, so L0 = k
    loss = mean||x - x_hat||^2 + aux_coeff * mean||e - e_hat||^2

One latent stands for a concept and its opposite, where the others need two: it is the proximal step for an L0
constraint without f >= 0. The second term is TopK's AuxK with signs, as SAELens has it: the error e = x - x_hat (no
gradient) is reconstructed, without b_dec, from the k_aux dead latents of largest |z|.

SAELens departs from this in its AuxK, with k_aux = d_in / 2, and a weaker weight where fewer are dead; in decoder rows
that are free, z being scaled by their norms; and in steps that do not take the gradient along a row out.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from sae_bench import Knob, Loss, Step, TopKAutoencoder, reconstruction_loss, register_architecture


@register_architecture("abs_topk")
class AbsTopK(TopKAutoencoder):
    signed = True
    nonlinearity = "abs_topk"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # TopK's (Gao et al. 2024), of which it is the variant.
        "paper": {"b_dec_init": "geometric_median", "dead_after": 10_000_000},
        "short": {"b_enc_init": "zeros", "lr": 8e-3},
    }
    knobs: ClassVar[dict[str, Knob]] = {"aux_coeff": Knob(1 / 256, 1 / 2), "dead_after": Knob(0.01, 0.2)}

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        f, f_dead = self.select_largest(x, step)
        x_hat = self.decode(f)
        error, auxiliary = reconstruction_loss(x, x_hat), self.aux_k(x, x_hat, f_dead)
        return Loss(error + self.options.aux_coeff * auxiliary, x_hat, f, {"reconstruction": error, "aux_k": auxiliary})
