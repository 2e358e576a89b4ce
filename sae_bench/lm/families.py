"""Families of models: which modules of a decoder layer add to the residual stream, and what they are called.

A family is one entry of `FAMILIES`, or a `register_family` in a plugin file. It is known by its structure - which
modules exist - and not by its name, so a new model built like Llama needs no entry. A name alone is never believed:
where a model runs, eight tokens show whether what the modules return is what the layer adds (`layers.adding_modules`).
"""

from dataclasses import dataclass

from torch import nn

from sae_bench.registry import REGISTERED

WRAPPERS = ("language_model", "text_model")
"""Parts of a module's path that multimodal models have before, or within, that of their text model."""


@dataclass(frozen=True)
class Family:
    """Module names shared by models that are built alike; `mlp_out` and `attn_out` are relative to a decoder layer.

    `layers` holds the decoder layers, whose outputs are `resid_post`, and the LM head sees what `final_norm` returns.
    """

    layers: str
    final_norm: str
    mlp_out: str
    """Its output is what the MLP adds to the residual stream."""
    attn_out: str
    """Its input is the concatenated head outputs, before the output projection."""


# A layer is of the first family whose modules all exist. What has a norm more stands before what has only the rest:
# what Gemma's and GLM-4's MLP adds to the residual has gone through that norm.
FAMILIES = [
    # Gemma 2 and 3, OLMo 2 and 3, EXAONE 4
    Family("model.layers", "model.norm", "post_feedforward_layernorm", "self_attn.o_proj"),
    # GLM-4
    Family("model.layers", "model.norm", "post_mlp_layernorm", "self_attn.o_proj"),
    # Llama, Mistral, Mixtral, Qwen, Phi-3, SmolLM, Gemma, OLMo, StableLM, StarCoder 2, Cohere, Granite, DeepSeek
    Family("model.layers", "model.norm", "mlp", "self_attn.o_proj"),
    # Granite's mixtures of experts
    Family("model.layers", "model.norm", "block_sparse_moe", "self_attn.o_proj"),
    # Qwen3-Next, where attention is linear
    Family("model.layers", "model.norm", "mlp", "linear_attn.out_proj"),
    # Llama 4
    Family("model.layers", "model.norm", "feed_forward", "self_attn.o_proj"),
    # Phi, Persimmon
    Family("model.layers", "model.final_layernorm", "mlp", "self_attn.dense"),
    # OPT
    Family("model.decoder.layers", "model.decoder.final_layer_norm", "fc2", "self_attn.out_proj"),
    # XGLM
    Family("model.layers", "model.layer_norm", "fc2", "self_attn.out_proj"),
    # BioGPT
    Family("biogpt.layers", "biogpt.layer_norm", "fc2", "self_attn.out_proj"),
    # GPT-NeoX: Pythia
    Family("gpt_neox.layers", "gpt_neox.final_layer_norm", "mlp", "attention.dense"),
    # GPT-2, GPT-BigCode: StarCoder
    Family("transformer.h", "transformer.ln_f", "mlp", "attn.c_proj"),
    # GPT-J, CodeGen
    Family("transformer.h", "transformer.ln_f", "mlp", "attn.out_proj"),
    # GPT-Neo: TinyStories
    Family("transformer.h", "transformer.ln_f", "mlp", "attn.attention.out_proj"),
    # Falcon, BLOOM: their MLP adds the residual itself
    Family("transformer.h", "transformer.ln_f", "mlp.dense_4h_to_h", "self_attention.dense"),
    # MPT: its MLP adds the residual itself
    Family("transformer.blocks", "transformer.norm_f", "ffn.down_proj", "attn.out_proj"),
    # Jamba, Bamba: attention, or a state-space mixer in its place
    Family("model.layers", "model.final_layernorm", "feed_forward", "self_attn.o_proj"),
    Family("model.layers", "model.final_layernorm", "feed_forward", "mamba.out_proj"),
    # RecurrentGemma: attention, or a recurrent block in its place
    Family("model.layers", "model.final_norm", "mlp_block", "temporal_block.o_proj"),
    Family("model.layers", "model.final_norm", "mlp_block", "temporal_block.linear_out"),
    # LFM2: attention, or a convolution in its place
    Family("model.layers", "model.embedding_norm", "feed_forward", "self_attn.out_proj"),
    Family("model.layers", "model.embedding_norm", "feed_forward", "conv.out_proj"),
]


def register_family(family: Family) -> None:
    """Give the models that are built so their sites. It stands before all that were known: one may refine another."""
    FAMILIES.insert(0, family)
    REGISTERED.append(f"family {family.layers}")


def find_family(model: nn.Module, layer: int = 0) -> Family | None:
    """Return the family that a layer of `model` is built like, with the paths of this model; None if of none."""
    paths = _paths(model)

    def fits(family: Family) -> bool:
        block = f"{family.layers}.{layer}"
        return {family.final_norm, f"{block}.{family.mlp_out}", f"{block}.{family.attn_out}"} <= paths.keys()

    found = next(filter(fits, FAMILIES), None)
    return found and Family(paths[found.layers], paths[found.final_norm], found.mlp_out, found.attn_out)


def _paths(model: nn.Module) -> dict[str, str]:
    """Every module's path, by what it would be without the wrappers of a multimodal model."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}
