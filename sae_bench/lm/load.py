"""A language model and its tokenizer by name, and what to tell the user when they cannot be had."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sae_bench.errors import UserError
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.model_names import resolve_model
from sae_bench.lm.skeleton import build_skeleton, check_quantisation


def load_language_model(
    name_or_path: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    revision: str | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> LanguageModel:
    """Load a causal language model and its tokenizer by short name (`ls models`), folder or hub name.

    Without `weights` the model is built from its configuration alone; under torch's FakeTensorMode that takes no
    memory, and the shapes are enough to plan a run.

    Raises UserError for a name that means nothing, for a model that cannot be had (gated, missing, no network,
    unreadable, quantised in a way that this machine cannot run), for one whose logits are not its LM head's output,
    soft-capped or not, and for one that has no embedding for words of its tokenizer.
    """
    name, source = resolve_model(name_or_path)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        check_quantisation(config)
        # The scaled-dot-product kernel cannot soft-cap attention scores.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        how: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager" if capped else None}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if not weights:
            model: Any = build_skeleton(config, trust_remote_code=trust_remote_code, **how)
        else:
            model = AutoModelForCausalLM.from_pretrained(source, config=config, **how, **options)
            model = model.to(device)
    except Exception as error:  # a loader raises anything: OSError, KeyError, what a model's own code raises
        raise UserError(_explanation(source, revision, error)) from error
    lm = LanguageModel(model, tokenizer, name, hub_commit(source, revision))
    lm.check_words()
    if weights:
        lm.check_logits()
    return lm


def hub_commit(source: str, revision: str | None) -> str | None:
    """Return the commit hash under which the hub's cache keeps a model that was just loaded, None for a folder."""
    if Path(source).is_dir():
        return None
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


def _explanation(source: str, revision: str | None, error: Exception) -> str:
    """What transformers and the hub raise while loading `source`, in one line with a remedy."""
    # The hub's own exceptions say more than the OSError that transformers wraps around them.
    cause = error if error.__cause__ is None else error.__cause__
    page = f"https://huggingface.co/{source}"
    if isinstance(cause, GatedRepoError):
        return f'model "{source}" is gated: accept its licence at {page} and run `hf auth login`'
    if isinstance(cause, RepositoryNotFoundError):
        return f'model "{source}" is not on the hub: check the name, or run `hf auth login` if it is private'
    if isinstance(cause, RevisionNotFoundError):
        return f'model "{source}" has no revision "{revision}": choose one listed at {page}'
    if isinstance(cause, ConnectionError) or "connect" in str(error):
        return f'model "{source}" cannot be downloaded: check the network, or give a local folder instead'
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    if isinstance(error, KeyError):
        reason = f"KeyError: {reason}"
    if isinstance(error, ImportError):
        return f'model "{source}" cannot be loaded ({reason}): install that, or choose a checkpoint without need of it'
    return f'model "{source}" cannot be loaded ({reason}): give another folder or a causal LM from the hub'
