"""An architecture as a user asks for it: its name, and settings that differ from the preset's."""

import ast
import contextlib
import json
import math
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class ArchSpec(Strict):
    """An architecture as asked for: `gated`, or with settings, `gated:penalty=ri_l1,lr=5e-4`.

    Settings name the architecture's options or fields of the recipe; which is which is found when it is built.
    """

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def parse(cls, text: object) -> "ArchSpec":
        if not isinstance(text, str):
            return cls.model_validate(text)
        name, _, rest = text.partition(":")
        settings: dict[str, Any] = {}
        for pair in filter(None, re.split(r",(?![^\[]*\])", rest)):  # a comma inside [...] belongs to a value
            key, equals, value = pair.partition("=")
            if not equals:
                raise ValueError(f'architecture "{text}": "{pair}" is not key=value; write NAME:key=value,key=value')
            if key.strip() in settings:
                raise ValueError(f'architecture "{text}": {key.strip()} is given twice; give it once')
            settings[key.strip()] = _plain_value(value.strip())
        return cls(name=name, settings=settings)

    @property
    def label(self) -> str:
        """How tables call it."""
        settings = ",".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                            for key, value in self.settings.items())  # fmt: skip
        return f"{self.name}:{settings}" if settings else self.name


def _plain_value(text: str) -> Any:
    value: Any = text
    try:
        value = json.loads(text.lower())
    except json.JSONDecodeError:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError):
            value = ast.literal_eval(text)  # .5, which is no JSON
    except RecursionError:
        raise ValueError(f"{text[:20]}... is nested too deeply: write a number, a word or a list") from None
    if not _is_plain(value):
        raise ValueError(f"{text} is no finite number, word or list of them")
    return value


def _is_plain(value: Any) -> bool:
    """Whether a value is one that records can hold."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, str | int | None)
