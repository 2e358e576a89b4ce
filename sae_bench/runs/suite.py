"""Suites: a run's settings in a TOML file, whose keys are the flags' names."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError, did_you_mean
from sae_bench.runs.config import RunConfig

USED_FIRST = ("plugins", "saes")
"""Settings that are looked into before the configuration is made, and checked, of all."""


def load_suite(name: str) -> dict[str, Any]:
    """Read a suite, a TOML file or the name of one that comes with the project, as settings by the names of fields.

    A key is a flag without its dashes, `eval_tokens` for `--eval-tokens`; the name that run.json has for it does too.

    Raises:
        UserError: there is no such suite, it cannot be read, or it holds a setting that does not exist, or one twice.
    """
    path = Path(name)
    if path.suffix != ".toml":
        known = {suite.stem: suite for suite in suite_files()}
        if name not in known:
            raise UserError(f'unknown suite "{name}"{did_you_mean(name, known)}; or give the path of a .toml file')
        path = known[name]
    try:
        suite = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"suite {path}: {error.strerror}; give the path of a readable TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"suite {path}: not valid TOML: {error}") from None
    fields = {flag.name: field for field, flag in RunConfig.flags().items()}
    settings: dict[str, Any] = {}
    for key, value in suite.items():
        field = fields.get(key, key)
        if field not in fields.values():
            raise UserError(f'suite {path}: unknown setting "{key}"{did_you_mean(key, fields)}')
        if field in settings:
            other = next(name for name in suite if fields.get(name, name) == field)
            raise UserError(f'suite {path}: "{other}" and "{key}" are one setting: give it once')
        if field in USED_FIRST and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise UserError(f"suite {path}: {key}: write a list of texts (given: {value!r})")
        settings[field] = value
    return settings


def suite_files() -> Iterable[Path]:
    """The suites that come with the project."""
    here = Path(__file__).parents[1]
    return sorted(file for folder in (here / "suites", here.parent / "suites") for file in folder.glob("*.toml"))
