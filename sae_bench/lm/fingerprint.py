"""What of a language model decides its numbers: weights, buffers, configuration, code of its own, and tokenizer.

A run is begun with one such identity, and goes on with no other: whoever edits `rms_norm_eps` in a `config.json` has
another model, whatever the hash of its weights.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sae_bench.lm.tokens import opening_id, special_ids
from sae_bench.plugin_files import modules_of
from sae_bench.records.files import digest_of, sha256

Identity = Mapping[str, Any]
"""By what it is of: hashes, and the configuration in full, so that what changed can be named."""

NOT_DECIDING = {
    *("_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "dtype", "torch_dtype"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
}
"""Settings that say where a model is from, or how it was loaded, which a run's own settings say."""


def configuration_of(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration without paths, versions and what is unset, at every level."""
    return _deciding(config.to_dict())


def _deciding(settings: Mapping[Any, Any]) -> dict[str, Any]:
    found = {}
    for key, value in settings.items():
        if value is None or key in NOT_DECIDING:
            continue
        found[str(key)] = _deciding(value) if isinstance(value, Mapping) else _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def hash_of_buffers(model: nn.Module) -> str:
    """SHA-256 (hex) over the buffers that come with the weights; others follow from the configuration."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored = model.state_dict().items()
    return hash_of_tensors({name: of for name, of in stored if name not in parameters and isinstance(of, Tensor)})


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes, in the order of the names; about 1 GB a second."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_of_code(model: type) -> str | None:
    """SHA-256 (hex) of the file that a model's class is from, and of its imports; None where it is transformers'."""
    if model.__module__.partition(".")[0] == "transformers":
        return None
    file, package = inspect.getsourcefile(model), getattr(sys.modules.get(model.__module__), "__package__", None)
    return digest_of(sorted(map(sha256, modules_of(Path(file), package or "")))) if file else None


def hash_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of a fast tokenizer's whole definition, of another one's vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def opening_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the definition of a tokenizer does not say: the token that opens a context, then those that are special."""
    return [opening_id(tokenizer), *sorted(special_ids(tokenizer))]


def fingerprint(identity: Identity) -> str:
    """SHA-256 (hex) of an identity: what records, collections and checkpoints are known by."""
    return digest_of(identity)


def differences(was: Identity, now: Identity) -> list[str]:
    """What of a model is another than it was, for people: `rms_norm_eps 1e-06 -> 0.5`, `weights`."""
    found = []
    for name in {**was, **now}:
        then, here = was.get(name), now.get(name)
        if isinstance(then, Mapping) and isinstance(here, Mapping):
            found += differences(then, here)
        elif then != here:
            short = all(isinstance(one, int | float | bool | None) or len(str(one)) < 20 for one in (then, here))
            found.append(f"{name} {then} -> {here}" if short else name)
    return found
