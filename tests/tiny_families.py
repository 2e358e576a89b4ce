"""Tiny random models of many families, as their configurations build them, and where each has its sites."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from tiny import D_MODEL, tiny_tokenizer

from sae_bench.lm.skeleton import auto_class

N_LAYERS = 2

WORDS = {"vocab_size": len(tiny_tokenizer()), "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
SIZES = WORDS | {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "max_position_embeddings": 128}
HEADS = {"num_attention_heads": 2, "initializer_range": 0.2}
GQA = SIZES | HEADS | {"intermediate_size": 56, "num_key_value_heads": 1}
LLAMA = GQA | {"head_dim": 24}
GPT = WORDS | {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": 2, "n_positions": 128, "initializer_range": 0.2}
CAPS = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0, "attn_implementation": "eager"}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2}


@dataclass(frozen=True)
class Tiny:
    """A configuration, and modules of layer 1: those of `mlp_out`, `attn_out` and `resid_mid`, None in parallel ones.

    What a layer's modules return is multiplied by `factor` before it is added.
    """

    config: Callable[[], Any]
    mlp_out: str = "mlp"
    attn_out: str = "self_attn.o_proj"
    resid_mid: str | None = "post_attention_layernorm"
    factor: float = 1.0


NORMED = "post_feedforward_layernorm", "self_attn.o_proj"
FALCON = "mlp.dense_4h_to_h", "self_attention.dense"

TINY = {
    "gemma2": Tiny(
        lambda: hf.Gemma2Config(**LLAMA, sliding_window=4, query_pre_attn_scalar=16, **CAPS),
        *NORMED,
        "pre_feedforward_layernorm",
    ),
    "gemma3": Tiny(
        lambda: hf.Gemma3TextConfig(**LLAMA, sliding_window=4, layer_types=["full_attention", "sliding_attention"]),
        *NORMED,
        "pre_feedforward_layernorm",
    ),
    "gemma3_multimodal": Tiny(
        lambda: hf.Gemma3Config(text_config=LLAMA | {"sliding_window": 4}, vision_config=VISION, image_token_id=9),
        *NORMED,
        "pre_feedforward_layernorm",
    ),
    "llava": Tiny(
        lambda: hf.LlavaConfig(
            text_config=hf.LlamaConfig(**LLAMA), vision_config=hf.CLIPVisionConfig(**VISION, image_size=28)
        )
    ),
    "olmo2": Tiny(lambda: hf.Olmo2Config(**LLAMA), *NORMED, "mlp"),
    "glm4": Tiny(lambda: hf.Glm4Config(**LLAMA), "post_mlp_layernorm"),
    "llama": Tiny(lambda: hf.LlamaConfig(**LLAMA)),
    "mistral": Tiny(lambda: hf.MistralConfig(**LLAMA, sliding_window=4)),
    "mixtral": Tiny(lambda: hf.MixtralConfig(**GQA, **EXPERTS, sliding_window=4)),
    "qwen2": Tiny(lambda: hf.Qwen2Config(**GQA)),
    "qwen3": Tiny(lambda: hf.Qwen3Config(**LLAMA)),
    "qwen3_next": Tiny(
        lambda: hf.Qwen3NextConfig(
            **LLAMA,
            **{"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8},
            **{"linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
            layer_types=["full_attention", "linear_attention"],
        ),
        attn_out="linear_attn.out_proj",
    ),
    "phi3": Tiny(lambda: hf.Phi3Config(**GQA)),
    "stablelm": Tiny(lambda: hf.StableLmConfig(**GQA)),
    "cohere": Tiny(lambda: hf.CohereConfig(**GQA, logit_scale=0.5), resid_mid=None),
    "granite": Tiny(
        lambda: hf.GraniteConfig(**GQA, residual_multiplier=0.22, logits_scaling=4.0, embedding_multiplier=3.0),
        factor=0.22,
    ),
    "granite_moe": Tiny(
        lambda: hf.GraniteMoeConfig(**GQA, **EXPERTS, residual_multiplier=0.22, logits_scaling=4.0),
        "block_sparse_moe",
        factor=0.22,
    ),
    "llama4": Tiny(
        lambda: hf.Llama4TextConfig(
            **LLAMA, intermediate_size_mlp=56, num_local_experts=2, num_experts_per_tok=1, moe_layers=[1]
        ),
        "feed_forward",
    ),
    "phi": Tiny(lambda: hf.PhiConfig(**SIZES, **HEADS, intermediate_size=56), "mlp", "self_attn.dense", None),
    "opt": Tiny(
        lambda: hf.OPTConfig(**SIZES, num_attention_heads=2, ffn_dim=56, init_std=0.2, word_embed_proj_dim=D_MODEL),
        "fc2",
        "self_attn.out_proj",
        "final_layer_norm",
    ),
    "pythia": Tiny(lambda: hf.GPTNeoXConfig(**SIZES, **HEADS, intermediate_size=56), "mlp", "attention.dense", None),
    "neox_serial": Tiny(
        lambda: hf.GPTNeoXConfig(**SIZES, **HEADS, intermediate_size=56, use_parallel_residual=False),
        "mlp",
        "attention.dense",
    ),
    "gpt2": Tiny(lambda: hf.GPT2Config(**GPT, n_inner=56), "mlp", "attn.c_proj", "ln_2"),
    "gpt_bigcode": Tiny(lambda: hf.GPTBigCodeConfig(**GPT, n_inner=56), "mlp", "attn.c_proj", "ln_2"),
    "gptj": Tiny(lambda: hf.GPTJConfig(**GPT, rotary_dim=8), "mlp", "attn.out_proj", None),
    "gpt_neo": Tiny(
        lambda: hf.GPTNeoConfig(
            **SIZES,
            num_layers=N_LAYERS,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
            initializer_range=0.2,
        ),
        "mlp",
        "attn.attention.out_proj",
        "ln_2",
    ),
    "falcon": Tiny(lambda: hf.FalconConfig(**SIZES, **HEADS, multi_query=True, parallel_attn=True), *FALCON, None),
    "falcon_serial": Tiny(
        lambda: hf.FalconConfig(**SIZES, **HEADS, alibi=True, multi_query=False, parallel_attn=False), *FALCON
    ),
    "bloom": Tiny(
        lambda: hf.BloomConfig(**WORDS, hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=2, initializer_range=0.2),
        *FALCON,
    ),
    "mpt": Tiny(
        lambda: hf.MptConfig(
            vocab_size=WORDS["vocab_size"], d_model=D_MODEL, n_layers=N_LAYERS, n_heads=2, initializer_range=0.2
        ),
        "ffn.down_proj",
        "attn.out_proj",
        "norm_2",
    ),
}


def mamba_config() -> Any:
    """Of no family: its layers have neither attention nor MLP."""
    return hf.MambaConfig(**WORDS, hidden_size=D_MODEL, num_hidden_layers=N_LAYERS, state_size=4)


def built(config: Any) -> hf.PreTrainedModel:
    """A random model whose norms and biases are random, too: one that is left out shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class(config).from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight += 0.3 * torch.randn_like(weight)
    return model.eval()
