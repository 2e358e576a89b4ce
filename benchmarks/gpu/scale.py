"""How large everything is: on a GPU, and in rehearsal on a CPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae_bench.lm.model_names import known_shape

TINY: Mapping[str, Any] = {
    "model_type": "gemma2", "vocab_size": 8192, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 48, "sliding_window": 16,
    "max_position_embeddings": 256, "query_pre_attn_scalar": 48, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}  # fmt: skip


def published() -> Mapping[str, Any]:
    """The configuration of Gemma 2 9B."""
    shape = known_shape("gemma-2-9b")
    assert shape is not None, "it is in `ls models`"
    return shape["config"]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Scale:
    """Sizes of every part. `layer` is where SAEs sit; a model of `shallow` layers is enough to train them."""

    device: torch.device
    scratch: Path
    d_in: int = 3584
    widths: tuple[int, ...] = (16_384, 131_072)
    batch: int = 4096
    l0: int = 64
    n_activations: int = 32_768
    rounds: int = 10
    model: Mapping[str, Any] = field(default_factory=published)
    model_dtype: torch.dtype = torch.bfloat16
    layer: int = 20
    shallow: int = 22
    context: int = 1024
    contexts: int = 32
    n_captured: int = 500_000
    n_evaluated: int = 16_384
    n_evaluated_saes: int = 8
    n_trained: int = 1_000_000
    reuse: int = 1
    n_texts: int = 100_000
    n_compared: int = 6000
    """Tokens of the trainings that are compared with the CPU's."""
    n_resumed: int = 4000
    """Tokens of the runs that are stopped and go on."""

    @staticmethod
    def toy(device: torch.device, scratch: Path) -> "Scale":
        """Small enough for every part to take seconds on a CPU."""
        return Scale(
            device, scratch, d_in=64, widths=(256, 512), batch=128, l0=8, n_activations=1024, rounds=2, model=TINY,
            model_dtype=torch.float32, layer=2, shallow=4, context=64, contexts=4, n_captured=2000, n_evaluated=300,
            n_evaluated_saes=4, n_trained=2000, reuse=2, n_texts=300,
            n_compared=2000, n_resumed=2000,
        )  # fmt: skip
