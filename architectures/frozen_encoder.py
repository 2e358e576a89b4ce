"""Control: topk whose latents fire as random ones do (Korznikov et al. 2026, arXiv 2602.14111, "Frozen Encoder").

    f = ReLU(top_k((x - m) W_enc))          m: the data's centre, W_enc: random unit columns; both stay as they are

W_dec and b_dec are trained by topk's loss and recipe. b_enc holds -m W_enc and the encoder sees x itself, for a
pre-encoder bias that is trained would move which latents fire. There is no AuxK: a latent that never fires cannot be
brought back. What it scores needed no learned latent: only the best directions to write for given random ones.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from sae_bench import ARCHITECTURES, Knob, SAEConfig, register_architecture

TopK = ARCHITECTURES["topk"]


@register_architecture("frozen_encoder")
class FrozenEncoder(TopK):  # type: ignore[misc, valid-type]
    is_control = True
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {**TopK.recipes["paper"], "aux_coeff": 0.0},
        "short": {**TopK.recipes["short"], "aux_coeff": 0.0, "lr": 2e-3},
    }
    knobs: ClassVar[dict[str, Knob]] = {"bias_lr": Knob(0.03, 1.0), "grad_clip": Knob(2e-3, 5e-2)}  # no AuxK to tune

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.W_enc.requires_grad_(False)
        self.b_enc.requires_grad_(False)

    pre_encoder_bias = False

    def initialise(self, x: Float[Tensor, "B D"]) -> None:
        self.b_enc.sub_(self.b_dec @ self.W_enc)
