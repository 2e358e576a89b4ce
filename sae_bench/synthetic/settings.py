"""What a synthetic world is like: the numbers that decide it, and the sizes that have a name; loads no torch."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sae_bench.errors import UserError, did_you_mean

NAME = "synthetic"
"""What `--model` calls a synthetic world, the site that it has, and the data that it gives."""

BLOCK = 256
"""Samples that are drawn at once, from numbers of their own: what a sample is depends on nothing but its number."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
"""Far below what float32 holds, so that activations are finite."""
Magnitude = Annotated[float, Field(gt=0, le=1e6)]


class WorldSettings(BaseModel):
    """A world of N features in d dimensions, x = sum_j a_j d_j + b (SynthSAEBench, arXiv 2602.14687).

    Features are numbered by rank, the most frequent first; defaults that have no size are the paper's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_features: Positive
    d_in: Positive
    n_roots: Annotated[int, Field(ge=0)]
    """Trees of the hierarchy, which takes the features breadth first, from the most frequent; 0: no hierarchy."""
    n_children: Annotated[int, Field(gt=0, le=1_000_000)] = 4
    """Of every feature of a tree that is not at its depth."""
    depth: Positive = 3
    """Levels below the roots."""
    exclusive: bool = True
    """Whether of the active children of a feature one alone stays active."""
    scaled: bool = True
    """Whether a child's magnitude is multiplied by its parent's over the mean of its parent's."""
    compensated: bool = True
    """Whether probabilities are raised by about what the hierarchy takes away."""
    max_probability: Share = 0.4
    min_probability: Share = 5e-4
    exponent: NotNegative = 0.5
    """Of the rank r: probabilities go as r^-exponent, mapped onto the two above."""
    correlation_rank: Annotated[int, Field(ge=0)] = 25
    correlation_scale: NotNegative = 0.1
    first_magnitude: Magnitude = 5.0
    """Mean magnitude of the first feature; it goes linearly to that of the last."""
    last_magnitude: Magnitude = 4.0
    deviation_mean: NotNegative = 0.5
    """A feature's magnitude has the standard deviation |N(deviation_mean, deviation_spread^2)|."""
    deviation_spread: NotNegative = 0.5
    bias_norm: NotNegative = 0.5
    orthogonal_steps: Annotated[int, Field(ge=0)] = 100
    orthogonal_lr: NotNegative = 3e-4
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> "WorldSettings":
        if self.min_probability > self.max_probability:
            raise ValueError(f"min_probability {self.min_probability:g} is above max_probability: exchange them")
        if self.n_roots > self.n_features:
            raise ValueError(f"n_roots {self.n_roots} are more than the {self.n_features} features: give fewer")
        return self


SIZES: dict[str, WorldSettings] = {
    "small": WorldSettings(n_features=1024, d_in=128, n_roots=8),
    "full": WorldSettings(n_features=16_384, d_in=768, n_roots=128),
}
"""`full` is the paper's; `small` has as many features for a dimension and as large a share of them in a hierarchy."""

_TRAINED: dict[str, dict[str, Any]] = {
    "small": {"widths": (256,), "l0s": (5.0,), "tokens": 262_144, "reuse": 1, "eval_tokens": 16_384},
    "full": {"widths": (4096,), "l0s": (25.0,), "tokens": 200_000_000, "reuse": 1, "eval_tokens": 262_144},
}


def is_synthetic(model: object) -> bool:
    """Whether a name of a model means a synthetic world."""
    return isinstance(model, str) and model.partition(":")[0] == NAME


def world_settings(model: str) -> tuple[str, WorldSettings]:
    """The full name and the settings of a world: `synthetic` alone is small, `synthetic:FILE.toml` a file's.

    Raises:
        UserError: there is no such size or file, or a setting in it does not exist or is out of range.
    """
    size = model.partition(":")[2] or "small"
    if size in SIZES:
        return f"{NAME}:{size}", SIZES[size]
    path = Path(size)
    if path.suffix != ".toml":
        raise UserError(f'--model {model}: unknown size "{size}"{did_you_mean(size, SIZES)}; or give a .toml file')
    if path.exists() and not path.is_file():
        raise UserError(f"--model {model}: no file; give the path of a readable TOML file")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--model {model}: {error.strerror}; give the path of a readable TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--model {model}: not valid TOML: {error}") from None
    base = found.pop("like", None)
    if base is not None and (not isinstance(base, str) or base not in SIZES):
        raise UserError(f'--model {model}: like: unknown size "{base}"{did_you_mean(str(base), SIZES)}')
    like = SIZES[base].model_dump() if base else {}
    try:
        return f"{NAME}:{path.stem}", WorldSettings(**{**like, **found})
    except ValidationError as error:
        first = error.errors()[0]
        setting = str(first["loc"][0]) if first["loc"] else ""
        meant = did_you_mean(setting, WorldSettings.model_fields) if first["type"] == "extra_forbidden" else ""
        said = first["msg"].removeprefix("Value error, ")
        about = f"{setting}: {said} (given: {first['input']!r:.60}){meant}" if setting else said
        message = f"--model {model}: {about}"
        raise UserError(message) from None


def run_defaults(name: str) -> dict[str, Any]:
    """What a run in a world is like unless it is told otherwise, by the names of `RunConfig`'s fields."""
    sizes = _TRAINED.get(name.partition(":")[2], _TRAINED["small"])
    return {**sizes, "dataset": NAME, "sites": (NAME,), "context_size": 4 * BLOCK + 1}
