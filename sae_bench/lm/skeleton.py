"""A language model without its weights: what its configuration alone tells of it, before anything is loaded."""

from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.quantizers.auto import AutoHfQuantizer


def build_skeleton(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """The model as it is built, for fake tensors: no weight is drawn, and experts are of the kind that needs no values.

    Where an initialisation draws until values fit, or experts are sorted by how many tokens they have, tensors without
    values cannot follow.
    """
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, experts_implementation="batched_mm", **options
        )
    return model


def check_quantisation(config: PreTrainedConfig) -> None:
    """Raise what `from_pretrained` would, if packages or hardware are missing that a quantised checkpoint needs.

    That is ImportError, RuntimeError or ValueError, as the method of quantisation has it.
    """
    method = getattr(config, "quantization_config", None)
    if method is not None and AutoHfQuantizer.supports_quant_method(method):
        AutoHfQuantizer.from_config(method, pre_quantized=True).validate_environment(device_map=None)
