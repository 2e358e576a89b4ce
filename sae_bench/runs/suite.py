"""A run's configuration from what users give: by flags' names, as flags, in Python, or in a suite's TOML file."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_origin

from sae_bench.errors import UserError, did_you_mean
from sae_bench.runs.config import RunConfig

USED_FIRST = ("plugins", "saes", "added_recipes")
"""Settings that are looked into before the configuration is made, and checked, of all."""

SEPARATED = ("l0s", "sparsity", "seeds", "widths", "layers", "sites", "tasks")
"""Settings of several values, none of which has a comma in it: commas may stand between them."""


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"suite {path}: not valid TOML: {error}") from None
    where = f"suite {path}: "
    return several(fields_of(suite, where), where)


def fields_of(given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Settings by the names of fields, from those of flags; `where` goes before what is wrong.

    Raises:
        UserError: a setting does not exist, or is there twice.
    """
    fields = {flag.name: field for field, flag in RunConfig.flags().items()}
    settings: dict[str, Any] = {}
    for key, value in given.items():
        field = fields.get(key, key)
        if field not in fields.values():
            raise UserError(f'{where}unknown setting "{key}"{did_you_mean(key, fields)}')
        if field in settings:
            other = next(name for name in given if fields.get(name, name) == field)
            raise UserError(f'{where}"{other}" and "{key}" are one setting: give it once')
        settings[field] = value
    return settings


def configure(suite_name: str | None, flags: Mapping[str, Any]) -> RunConfig:
    """A run's configuration: flags over the suite over defaults. Loads plugins, for their names to be known."""
    from sae_bench.lm.model_names import HUB_MODELS
    from sae_bench.registry import known_architectures, load_plugin

    suite, flags = load_suite(suite_name) if suite_name else {}, several(flags)
    if suite.get("trust_remote_code") and not flags.get("trust_remote_code"):
        code = f"suite {suite_name} runs code that comes with the model"
        raise UserError(f"{code}: add --trust-remote-code if you trust it")
    given = {**suite, **flags}
    load_plugin(*given.get("plugins", ()))
    sources: dict[str, Any] = {}
    if given.get("saes"):
        from sae_bench.runs.import_saes import name_sources

        sources["saes"] = name_sources(given["saes"])
    if given.get("recipe"):
        from sae_bench.runs.tuned import read_recipe

        sources["recipe"] = read_recipe(str(given["recipe"]))
    if given.get("added_recipes"):
        from sae_bench.runs.tuned import read_recipe

        sources["added_recipes"] = [read_recipe(name, "--added-recipe") for name in given["added_recipes"]]
    if "all" in [*given.get("layers", ()), *given.get("sites", ())]:
        from sae_bench.runs.whole_model import resolve_all

        sources |= resolve_all(given)
    on_hub = {*HUB_MODELS, *HUB_MODELS.values()}
    return RunConfig.build(suite, flags, sources, known=known_architectures, hub_models=on_hub)


def several(settings: Mapping[str, Any], where: str = "--") -> dict[str, Any]:
    """Settings in which those that may have several values are lists: 16 and "16,32" may stand for [16] and [16, 32].

    `where` goes before what is wrong.

    Raises:
        UserError: one of them has no value at all.
    """
    flags = RunConfig.flags()
    found = dict(settings)
    for name in flags.keys() & settings.keys():
        hint = RunConfig.model_fields[name].annotation
        if get_origin(hint) is not tuple:
            continue
        values = settings[name] if isinstance(settings[name], list | tuple) else [settings[name]]
        if not values:
            raise UserError(f"{where}{flags[name].name}: give a value, or leave it out")
        if name in USED_FIRST and not all(isinstance(value, str) for value in values):
            raise UserError(f"{where}{flags[name].name}: write a text or a list of texts (given: {settings[name]!r})")
        if name in SEPARATED:
            values = [part for value in values for part in _parts(value)]
            if "" in values:
                raise UserError(
                    f"{where}{flags[name].name}: a value is missing beside a comma (given: {settings[name]!r})"
                )
        found[name] = values
    return found


def _parts(value: object) -> list[object]:
    """What commas separate in a text; anything else is one value."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]


def suite_files() -> Iterable[Path]:
    """The suites that come with the project."""
    here = Path(__file__).parents[1]
    return sorted(file for folder in (here / "suites", here.parent / "suites") for file in folder.glob("*.toml"))
