"""Which language model a name means, and what to tell the user when it cannot be had.

A name is a short name from `MODELS`, a folder that holds `config.json`, or `owner/name` on the Hugging Face hub.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError

from sae_bench.errors import UserError, did_you_mean

DEMO = "demo"  # the small model that is built from a Python package, without the hub

MODELS = {
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-2b-it": "google/gemma-2-2b-it",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-9b-it": "google/gemma-2-9b-it",
    "gemma-3-270m": "google/gemma-3-270m",
    "gpt2": "openai-community/gpt2",
    "pythia-70m": "EleutherAI/pythia-70m",
    "pythia-160m": "EleutherAI/pythia-160m",
    DEMO: DEMO,
}

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_model(name: str) -> tuple[str, str]:
    """Return `(name, source)`: the model's name for records, and the folder or hub repository to load it from.

    Raises UserError for a folder without `config.json` and for a name that can be nothing.
    """
    if name == DEMO:
        from sae_bench.demo.model import demo_model_folder  # unpacks a model: only for those who ask for it

        return DEMO, str(demo_model_folder())
    if name in MODELS:
        return MODELS[name], MODELS[name]
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(f'model "{name}": the folder has no config.json: name one saved by save_pretrained()')
        return name, name
    if _HUB_NAME.fullmatch(name):
        return name, name
    raise UserError(f'unknown model "{name}": no short name, no folder, not owner/name{did_you_mean(name, MODELS)}')


def hub_commit(source: str, revision: str | None) -> str | None:
    """Return the commit hash under which the hub's cache keeps a model that was just loaded, None for a folder."""
    if Path(source).is_dir():
        return None
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


@contextmanager
def explained_load_errors(source: str, revision: str | None) -> Iterator[None]:
    """Turn what transformers and the hub raise while loading `source` into a UserError of one line with a remedy."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:  # all that a loader raises
        raise UserError(_explanation(source, revision, error)) from error


def _explanation(source: str, revision: str | None, error: Exception) -> str:
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
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return f'model "{source}" cannot be loaded ({reason}): give another folder or a causal LM from the hub'
