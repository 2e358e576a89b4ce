"""Control: topk whose decoder directions stay random (Korznikov et al. 2026, arXiv 2602.14111, "Frozen Decoder").

W_dec keeps the random unit rows that every architecture starts from; W_enc, b_enc and b_dec learn by topk's loss and
recipe. What it scores needed no learned direction: an encoder that chooses well among random ones is enough. Its
base here is `topk`, as that of all controls, whose L0 is k without a threshold or a coefficient to tune.
"""

from typing import Any, ClassVar

from sae_bench import ARCHITECTURES, SAEConfig, register_architecture

TopK = ARCHITECTURES["topk"]


@register_architecture("frozen_decoder")
class FrozenDecoder(TopK):  # type: ignore[misc, valid-type]
    is_control = True
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        **TopK.recipes,
        "short": {**TopK.recipes["short"], "lr": 2e-3},
    }

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.W_dec.requires_grad_(False)
