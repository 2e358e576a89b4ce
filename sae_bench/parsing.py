"""What a setting is to those who write it: counts such as 16k or 2M, and which fields of a model are flags."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, ByteSize, Field, TypeAdapter, ValidationError


def parse_count(text: object) -> int:
    """Read a count as people write it: 4096, 16k (16 x 1024 latents, as in "width 16k"), 2M (million), 1e6."""
    match = re.fullmatch(r"\s*((?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:e\d+)?)\s*([kKM]?)\s*", str(text))
    if not match:
        raise ValueError(f"{text!r} is not a count: write 4096, 16k or 2M")
    count = float(match[1]) * {"": 1, "k": 1024, "K": 1024, "M": 1_000_000}[match[2]]
    if not count < 1e18:
        raise ValueError(f"{text!r} is more than any machine holds: write a smaller count")
    return round(count)


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]


def parse_bytes(text: object) -> int:
    """Read a size as people write it: 200GB, 1.5TB, 512MiB."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ValueError(f"{text!r} is no size: write 200GB or 500MB") from None


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


def parse_layers(layers: object) -> object:
    """Read layers and ranges of them, ("3", "5-7"), as 3, 5, 6, 7; each once."""
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        return layers  # no list: whoever validates it says so
    found: dict[object, None] = {}
    for layer in layers:
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", str(layer))
        if match and int(match[1]) > int(match[2]):
            raise ValueError(f"{layer!r} is a range from high to low: write {match[2]}-{match[1]}")
        if not isinstance(layer, str | int):
            raise ValueError(f"{layer!r} is no layer: write 3, 5-7 or all")
        plain = isinstance(layer, str) and layer.strip().isdigit()
        found |= dict.fromkeys(range(int(match[1]), int(match[2]) + 1) if match else [int(layer) if plain else layer])
    return tuple(found)


def n_steps_in(duration: float, n_steps: int) -> int:
    """A number of steps that is given as such or, up to 1, as a share of the run."""
    return round(duration * n_steps) if duration <= 1 else int(duration)


class Heading(StrEnum):
    """What flags stand under in `--help`, in this order."""

    WHAT = "What"
    MODEL = "Language model"
    SAES = "SAEs"
    DATA = "Data and training"
    INTERPRETABILITY = "Interpretability"
    PROBING = "Probing"
    RUN = "Run"


@dataclass(frozen=True)
class Flag:
    """Marks a field of `RunConfig` as a setting: `Annotated[Count, Flag(Heading.DATA)]`.

    Flag, help and the key in a suite follow from the field: its type, its default and its docstring. `name` is what
    they are called if that is not the field's own name, as `arch` is for `archs`; records keep the field's name.
    """

    heading: Heading
    name: str = ""
