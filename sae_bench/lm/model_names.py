"""Which language model a name means; the command line asks this, so it loads no torch.

A name is a short name, of the hub's models here or of a plugin's; a folder that holds `config.json`; or `owner/name` on
the Hugging Face hub.
"""

import re
from pathlib import Path

from sae_bench.errors import UserError, did_you_mean
from sae_bench.registry import MODELS

HUB_MODELS = {
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-2b-it": "google/gemma-2-2b-it",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-9b-it": "google/gemma-2-9b-it",
    "gemma-3-270m": "google/gemma-3-270m",
    "gpt2": "openai-community/gpt2",
    "pythia-70m": "EleutherAI/pythia-70m",
    "pythia-160m": "EleutherAI/pythia-160m",
}

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_model(name: str) -> tuple[str, str]:
    """Return `(name, source)`: the model's name for records, and the folder or hub repository to load it from.

    Raises UserError for a folder without `config.json`, for a name that can be nothing, and for one that is two.
    """
    if name in HUB_MODELS:
        if name in MODELS:
            raise UserError(
                f"model \"{name}\" is {HUB_MODELS[name]} on the hub and a plugin's too: rename the plugin's"
            )
        return HUB_MODELS[name], HUB_MODELS[name]
    if name in MODELS:
        return name, MODELS[name]()
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(f'model "{name}": the folder has no config.json: name one saved by save_pretrained()')
        return name, name
    if _HUB_NAME.fullmatch(name):
        return name, name
    meant = did_you_mean(name, [*HUB_MODELS, *MODELS])
    raise UserError(f'unknown model "{name}": no short name, no folder, not owner/name{meant}')
