"""Control: principal components. The k largest coefficients, by magnitude, of an orthogonal basis taken from the data.

    x_hat = b_dec + sum over the k largest |c_i| of c_i u_i,    c_i = u_i . (x - b_dec)

u_1, u_2, ... are the leading eigenvectors of the second moments about b_dec, the data's mean. Each is a pair of
latents, u_i and -u_i, one of which is active at most, so f >= 0 as everywhere and L0 = k. A width F holds min(F / 2, D)
pairs; latents beyond them are dead. No choice of k columns of this basis reconstructs a token better; what it scores is
what a basis that is not overcomplete, and that no gradient has seen, already explains.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench import ARCHITECTURES, SAEConfig, register_architecture

TopK = ARCHITECTURES["topk"]


@register_architecture("pca")
class PCA(TopK):  # type: ignore[misc, valid-type]
    is_control = True
    is_trained = False
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"b_dec_init": "mean"},
        "short": {"b_enc_init": "zeros"},
    }

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.n_pairs = _n_pairs(config)

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        super().check(config)
        if config.sparsity > (n_pairs := _n_pairs(config)):
            raise ValueError(
                f"k = {config.sparsity:g} is more than its {n_pairs} pairs of directions: give a smaller L0, or twice "
                f"as many latents, or leave pca out ({config.d_in} pairs at most)"
            )

    def initialise(self, x: Float[Tensor, "B D"]) -> None:
        n, centred = self.n_pairs, (x - self.b_dec).double()
        rising = torch.linalg.eigh(centred.T @ centred).eigenvectors
        leading = rising.flip(1)[:, :n].T.to(self.W_dec)
        self.W_dec[: 2 * n] = torch.cat([leading, -leading])
        self.W_enc.zero_()
        self.W_enc[:, : 2 * n] = self.W_dec[: 2 * n].T


def _n_pairs(config: SAEConfig) -> int:
    return min(config.d_sae // 2, config.d_in)
