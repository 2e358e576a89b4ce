"""Which language model a name means; the command line asks this, so it loads no torch.

A name is a short name, of the hub's models here or of a plugin's; a folder that holds `config.json`; or `owner/name` on
the Hugging Face hub.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError, did_you_mean
from sae_bench.registry import MODELS

_KNOWN: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("known_models.toml").read_text("utf-8"))

HUB_MODELS: dict[str, str] = {name: about["hub"] for name, about in _KNOWN.items() if "hub" in about}
"""Short names of models of the hub."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def known_shape(name: str) -> dict[str, Any] | None:
    """What is known in advance of the model of a short name or a hub name; None if it is not in `known_models.toml`.

    `parameters` is their number as published, `config` what transformers' AutoConfig takes.
    """
    short = next((short for short, on_hub in HUB_MODELS.items() if on_hub == name), name)
    about = _KNOWN.get(short)
    return about if about is None or "config" in about else _KNOWN[about["like"]]


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
