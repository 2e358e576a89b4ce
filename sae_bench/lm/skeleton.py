"""A language model without its weights: what its configuration alone tells of it, before anything is loaded."""

import math
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.quantizers.auto import AutoHfQuantizer


def auto_class(config: PreTrainedConfig) -> Any:
    """The class that loads a model: many that read images, too, count as no causal ones, and are whole with text."""
    of = type(config)
    if of in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and of not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def build_skeleton(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """The model as it is built, for fake tensors: no weight is drawn, and experts are of the kind that needs no values.

    Where an initialisation draws until values fit, or experts are sorted by how many tokens they have, tensors without
    values cannot follow.
    """
    with no_init_weights():
        model: PreTrainedModel = auto_class(config).from_config(config, experts_implementation="batched_mm", **options)
    return model


def logit_factor(config: PreTrainedConfig) -> float:
    """By what a model multiplies its head's output; whoever has its weights sees whether it is so."""
    factors = (getattr(config, name, None) for name in ("logit_scale", "lm_head_multiplier"))  # Cohere; Falcon-H1
    product = math.prod(factor for factor in factors if isinstance(factor, int | float))
    return product / float(getattr(config, "logits_scaling", 1))  # Granite


def check_quantisation(config: PreTrainedConfig) -> None:
    """Raise what `from_pretrained` would, if packages or hardware are missing that a quantised checkpoint needs.

    That is ImportError, RuntimeError or ValueError, as the method of quantisation has it.
    """
    method = getattr(config, "quantization_config", None)
    if method is not None and AutoHfQuantizer.supports_quant_method(method):
        AutoHfQuantizer.from_config(method, pre_quantized=True).validate_environment(device_map=None)
