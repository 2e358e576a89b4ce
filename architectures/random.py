"""Control: a topk SAE that was never trained. Random unit directions, and nothing of the data but mean and scale.

    f = ReLU(top_k(s (x - b_dec) W))        W = W_dec^T, random unit vectors; b_dec: the data's mean

It has L0 = k on every token, as `topk` has. Random directions overlap, so the sum of the k best is too long or too
short; one number s, fitted by least squares on a sample, takes out that part of the error, which says nothing of
directions. What it scores is what sparsity, width and the geometry of the activations give for nothing.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from sae_bench import ARCHITECTURES, register_architecture

TopK = ARCHITECTURES["topk"]


@register_architecture("random")
class Random(TopK):  # type: ignore[misc, valid-type]
    is_control = True
    is_trained = False
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"b_dec_init": "mean"},
        "short": {"b_enc_init": "zeros"},
    }

    def initialise(self, x: Float[Tensor, "B D"]) -> None:
        centred, sums = x - self.b_dec, self(x) - self.b_dec
        self.W_enc.mul_((centred * sums).sum() / sums.square().sum())
