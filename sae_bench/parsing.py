"""What a setting is to those who write it: counts such as 16k or 2M, and which fields of a model are flags."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field


def parse_count(text: object) -> int:
    """Read a count as people write it: 4096, 16k (16 x 1024 latents, as in "width 16k"), 2M (million), 1e6."""
    match = re.fullmatch(r"\s*([\d_.]+(?:e\d+)?)\s*([kKM]?)\s*", str(text))
    if not match:
        raise ValueError(f"{text!r} is not a count: write 4096, 16k or 2M")
    count = float(match[1]) * {"": 1, "k": 1024, "K": 1024, "M": 1_000_000}[match[2]]
    if not count < 1e18:
        raise ValueError(f"{text!r} is more than any machine holds: write a smaller count")
    return round(count)


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]


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
