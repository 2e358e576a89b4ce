"""One run in parts, as one board: seeds trained on several machines, or in several nights.

Parts share all settings that decide a number, and model and corpus by what they hold; they have no SAE in common. What
they are together is what one folder would hold that was asked for all of it, but for what their SAEs would have told of
each other: seeds are compared within a part. `parts` in run.json says what each was, and where.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from sae_bench.errors import UserError, one_line
from sae_bench.records.files import of_our_form, sealed_bytes

SHARED = ("format", "config_hash", "training_hash", "kept", "plugins", "earlier", "model", "dataset_sha256")
"""What run.json says alike of all parts."""

OF_ONE = ("asked", "saes", "environment", "kernels", "seal")
"""What it says of each."""

Part = tuple[Path, Mapping[str, bytes]]
"""A folder, and what is in it that boards are drawn from, by its path there."""


def joined(parts: Sequence[Part]) -> dict[str, bytes]:
    """The files of all parts as those of one run.

    Raises:
        UserError: they are not parts of one run, or have an SAE in common.
    """
    found: dict[str, bytes] = {}
    where: dict[str, Path] = {}
    for folder, files in parts:
        if "run.json" not in files:
            raise UserError(f"{folder} has no run.json, which says what it is part of: give the folder of a run")
        for name in sorted(files.keys() - {"run.json"}):
            if name in where:
                raise UserError(f"{name} is in {where[name]} and in {folder}: parts of a run have different SAEs")
            found[name], where[name] = files[name], folder
    return found | {"run.json": sealed_bytes(_whole([(one, from_json(files["run.json"])) for one, files in parts]))}


def _whole(parts: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[str, Any]:
    """What run.json says of the whole."""
    (first, whole), *_ = parts
    asked: list[Any] = []
    saes: list[Any] = []
    of_each: list[Any] = []
    recipes: dict[str, Any] = {}
    for folder, part in parts:
        with of_our_form(folder / "run.json"):
            if "asked" not in part:
                raise UserError(f"{folder} is of an earlier version, which wrote less down: it is no part of another")
            if different := _difference(whole, part):
                raise UserError(
                    f"{folder} is no part of the run in {first}: it differs in {different}; draw a board of each, and "
                    "show both with table --mix"
                )
            if lacking := sorted(_tasks(whole) ^ _tasks(part)):
                raise UserError(
                    f"{first} and {folder} were not both asked for {', '.join(lacking)}, and all SAEs of a board are "
                    "measured by all of its tasks: give each run's command again with --tasks"
                )
            if common := sorted({*saes} & {*part["saes"]}):
                raise UserError(f"{common[0]} is in {folder} and in another part: parts of a run have different SAEs")
            asked += [of for of in part["asked"] if of not in asked]
            saes += part["saes"]
            recipes |= part["recipes"]
            of_each += part.get("parts", [{name: part[name] for name in OF_ONE}])
    own = {name: of for name, of in whole.items() if name != "seal"}
    return own | {"asked": asked, "saes": saes, "recipes": recipes, "parts": of_each}


def _tasks(part: Mapping[str, Any]) -> set[str]:
    """What a part's commands asked to be measured."""
    said = [of["tasks"] for of in part["asked"] if of.get("tasks") is not None]
    return {name for of in said for name in of or ["the usual tasks"]}


def _difference(whole: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """What two runs differ in that parts share, with both values; nothing where there is nothing."""
    choices = {name for of in (whole, part) for asked in of["asked"] for name in asked}
    for name in SHARED:
        one, other = whole.get(name), part.get(name)
        if one == other:
            continue
        if name.endswith("_hash"):  # of these settings, the choice of SAEs left out
            one, other = whole["config"], part["config"]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            inner = [key for key in {**one, **other} if key not in choices and one.get(key) != other.get(key)]
            name, one, other = (inner[0], one.get(inner[0]), other.get(inner[0])) if inner else (name, "one", "another")
        return f"{name} ({one_line(str(one)):.60}, {one_line(str(other)):.60})"
    return ""
