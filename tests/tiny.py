"""Tiny randomly initialised language models, one for each family, and folders that load like downloaded ones.

Sizes are chosen so that a mix-up shows: no two widths are equal where the family allows it, norms and biases are
random, soft-caps are low enough to bite, and windows are shorter than the contexts.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

N_LAYERS, D_MODEL, HEADS_WIDTH = 4, 32, 48  # 2 heads of 24: wider than the residual stream

TEXT = """
The river came down from the hills in spring and carried grey stones past the old mill, where nobody had lived since
the war. A boy sat on the wall and counted boats. His sister read a long letter from their uncle, who built bridges in
another country and wrote about rain, iron, bread, and the price of coal. When evening fell, two fishermen lit small
lamps and rowed slowly toward the harbour; their voices could be heard far across the water.
Every number has a definition, said the teacher, and every definition has a reason. If you add one to three you get
four, but if you ask why, most people look out of the window. She drew a circle on the board, then a square inside it,
and asked which of them was larger. Nobody answered. Outside, snow had begun to cover the roofs, the garden, the road.
Machines learn from examples as children do: they see many, forget most, and keep what helps them guess the next word.
A good guess is not the truth, yet after enough good guesses it becomes hard to tell the difference. Some features of
a picture are rare and others appear in almost every scene; a dictionary that holds both must be very wide, though only
few of its entries are needed at any moment. We measure how well it works by removing a part and watching what breaks.
In the market a woman sold apples, honey, candles, wool and blue paint. Her dog slept under the table until the bells
rang at noon. Then it stood up, shook its ears, walked twice around the fountain and lay down again beside a warm oven.
Doctors, sailors, farmers and clerks passed by; each of them knew some story about the king who lost his crown at sea.
"""

# <bos> is token 0 in the GPT-NeoX tokenizer, as in Pythia's: a test on truthiness would overlook it there.
SPECIAL_TOKENS = {"gpt_neox": ["<bos>", "<eos>", "<pad>", "<unk>"]}
DEFAULT_SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>"]
WITHOUT_BOS = ("gpt2", "gpt_neox", "qwen3")  # families whose tokenizers do not open a text with <bos> by themselves


def tiny_tokenizer(family: str = "gemma2") -> PreTrainedTokenizerBase:
    """A word-level tokenizer of some three hundred words of English."""
    specials = SPECIAL_TOKENS.get(family, DEFAULT_SPECIAL_TOKENS)
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator([TEXT], trainers.WordLevelTrainer(special_tokens=specials, show_progress=False))
    if family not in WITHOUT_BOS:
        bos = ("<bos>", specials.index("<bos>"))
        words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    names = {f"{token.strip('<>')}_token": token for token in specials}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=128, **names)


def _build(config_class: type[PreTrainedConfig], family: str, **options: Any) -> PreTrainedModel:
    tokenizer = tiny_tokenizer(family)
    config = config_class(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=128,
        num_hidden_layers=N_LAYERS,
        hidden_size=D_MODEL,
        initializer_range=0.2,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:  # norms and biases start at 0 or 1, where leaving one out would not show
                    weight += 0.3 * torch.randn_like(weight)
    return model.eval()


def _build_llama_like(config_class: type[PreTrainedConfig], family: str, **options: Any) -> PreTrainedModel:
    sizes = {"intermediate_size": 56, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24}
    return _build(config_class, family, **(sizes | options))


def tiny_gemma2(**options: Any) -> PreTrainedModel:
    """Both soft-cappings, and windows of 4 tokens in every other layer."""
    options = {"sliding_window": 4, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0} | options
    return _build_llama_like(Gemma2Config, "gemma2", query_pre_attn_scalar=16, **options)


def tiny_gemma3(**options: Any) -> PreTrainedModel:
    """Windows of 4 tokens in three layers, each kind of layer with its own rotary base."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    options = {"sliding_window": 4, "layer_types": kinds, "query_pre_attn_scalar": 16} | options
    return _build_llama_like(Gemma3TextConfig, "gemma3", **options)


def tiny_llama(**options: Any) -> PreTrainedModel:
    return _build_llama_like(LlamaConfig, "llama", **options)


def tiny_qwen3(**options: Any) -> PreTrainedModel:
    return _build_llama_like(Qwen3Config, "qwen3", **options)


def tiny_mistral(**options: Any) -> PreTrainedModel:
    return _build_llama_like(MistralConfig, "mistral", **({"sliding_window": 4} | options))


def tiny_gpt_neox(**options: Any) -> PreTrainedModel:
    """Attention and MLP side by side, as in Pythia; `use_parallel_residual=False` puts them in a row."""
    return _build(GPTNeoXConfig, "gpt_neox", **({"intermediate_size": 56, "num_attention_heads": 2} | options))


def tiny_gpt2(**options: Any) -> PreTrainedModel:
    return _build(GPT2Config, "gpt2", **({"n_inner": 56, "num_attention_heads": 2} | options))


def tiny_phi(**options: Any) -> PreTrainedModel:
    """Attention and MLP side by side, and projections of other names than Llama's."""
    return _build(PhiConfig, "gemma2", **({"intermediate_size": 56, "num_attention_heads": 2} | options))


FAMILIES = {
    "gemma2": tiny_gemma2,
    "gemma3": tiny_gemma3,
    "llama": tiny_llama,
    "qwen3": tiny_qwen3,
    "mistral": tiny_mistral,
    "gpt_neox": tiny_gpt_neox,
    "gpt2": tiny_gpt2,
}


def save_tiny(folder: str | Path, family: str = "gemma2") -> Path:
    """Save the tiny model of `family` and its tokenizer as AutoModelForCausalLM and AutoTokenizer load them."""
    folder = Path(folder)
    FAMILIES[family]().save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return folder
