"""Settings that `tune` found, as files that a run names with `--recipe`: TOML, one table for each architecture.

[tuning]                        where they come from: model, text, tokens, seeds, L0s, trials, versions, hashes
[archs.topk]                    by the name that the run gives the architecture: archs."gated:penalty=ri_l1"
version = "1"                   of the architecture; another one learns something else
settings = { lr = 0.004 }

An architecture that came later has a file of its own, and a run names both: these must come of equal searches.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from sae_bench.errors import UserError, did_you_mean
from sae_bench.runs.arch_spec import Strict

PART = "tuning"
"""The part of every corpus and world that is tuned on, as `near_duplicates.Part` has it."""

NO_SEARCH = ("model", "versions", "trials_sha256")
"""What two files of equal searches may say differently: a model has its hash, and the rest came of it."""


class TunedArch(Strict):
    """What was found for one architecture."""

    version: str
    settings: dict[str, float | int]


class TunedRecipe(Strict):
    """What a run knows of the recipe that it names: enough to train by it, and to tell it from another."""

    name: str
    path: str = Field("", exclude=True)
    """As it was named; which of two paths it was decides nothing."""
    dataset: str = Field("", exclude=True)
    """What it was tuned on, as the corpus describes itself; its hash holds that."""
    sha256: str
    preset: str
    split: str | None
    """The rules by which the text was parted."""
    search: dict[str, Any] = Field({}, exclude=True)
    """How it was looked for: on what, for how long, with how many trials. Its hash holds that."""
    archs: dict[str, TunedArch]

    @property
    def title(self) -> str:
        """As boards call it."""
        return f"{self.name} {self.sha256[:8]}"

    def check(self, preset: str, split: str | None) -> None:
        """Raise UserError where a run of this preset, on text that is parted by these rules, has no use for it."""
        if preset != self.preset:
            raise UserError(
                f"--recipe {self.name} is for --preset {self.preset}, and this run has {preset}: leave one out"
            )
        if None not in (split, self.split) and split != self.split:
            raise UserError(
                f"--recipe {self.name} was found on text that was parted by other rules ({self.split}, now {split}): "
                "tune again"
            )

    def check_added(self, other: "TunedRecipe") -> None:
        """Raise UserError unless another one came of a search equal to this one's, and for other architectures."""
        if both := [label for label in other.archs if label in self.archs]:
            raise UserError(
                f"--added-recipe {other.name}: --recipe {self.name} has {', '.join(both)}, too, and an architecture is "
                "trained by one: tune without what is there already"
            )
        mine, its = ({key: of for key, of in one.search.items() if key not in NO_SEARCH} for one in (self, other))
        if different := [key for key in {**mine, **its} if mine.get(key) != its.get(key)]:
            said = "; ".join(f"{key}: {its.get(key)!r}, not {mine.get(key)!r}" for key in different)
            raise UserError(
                f"--added-recipe {other.name} came of another search than --recipe {self.name} ({said}): who was tuned "
                "longer, or on other text, looks better for it; tune anew as the first was"
            )

    def joined(self, others: Sequence["TunedRecipe"]) -> "TunedRecipe":
        """With the architectures of others, to look settings up in; it is known by its own."""
        return self.model_copy(
            update={"archs": {label: of for one in (self, *others) for label, of in one.archs.items()}}
        )

    def check_archs(self, versions: Mapping[str, str]) -> None:
        """Raise UserError where architectures, by the names that they are tuned by, are not in it in these versions."""
        missing = [label for label in versions if label not in self.archs]
        known = {label: self.archs[label].version for label in versions if label in self.archs}
        old = [f"{label} in version {was}, which is {versions[label]} now" for label, was in known.items()
               if was != versions[label]]  # fmt: skip
        if not missing and not old:
            return
        lacks = [f"nothing for {', '.join(missing)} (only for {', '.join(self.archs)})"] if missing else []
        named = " ".join([*missing, *(label for label in known if known[label] != versions[label])])
        how = "tune anew with these ({}), or leave them out" if old else (
            "tune them as it was ({}) and give what was found as --added-recipe, or leave them out"
        )  # fmt: skip
        command = f"`python bench.py tune --arch {named} ...`"
        raise UserError(f"--recipe {self.name} has {' and '.join([*lacks, *old])}: {how.format(command)}")


def read_recipe(name: str, flag: str = "--recipe") -> TunedRecipe:
    """Read a recipe: a path, or the name of one that comes with the project.

    Raises:
        UserError: there is none, or it is no recipe that `tune` has written.
    """
    path = _find(name, flag)
    try:
        content = path.read_bytes()
        said = tomllib.loads(content.decode())
    except OSError as error:
        raise UserError(f"{flag} {name}: {error.strerror}; give the path of a file that `tune` has written") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{flag} {name}: not valid TOML: {error}") from None
    try:
        about = said["tuning"]
        archs = {
            label: TunedArch(version=of["version"], settings=of["settings"]) for label, of in said["archs"].items()
        }
        digest = hashlib.sha256(content).hexdigest()
        return TunedRecipe(
            name=path.stem,
            path=name,
            dataset=str(about.get("dataset", "")),
            sha256=digest,
            preset=about["preset"],
            split=about.get("split"),
            search=about,
            archs=archs,
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{flag} {name}: `tune` writes recipes, and this is none of them: give another file") from None


def recipe_files() -> dict[str, Path]:
    """The recipes that come with the project, by name."""
    here = Path(__file__).parents[1]
    folders = (here / "suites" / "tuned", here.parent / "suites" / "tuned")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.toml"))}


def _find(name: str, flag: str) -> Path:
    if Path(name).suffix == ".toml":
        return Path(name)
    known = recipe_files()
    if name not in known:
        raise UserError(f'{flag}: unknown recipe "{name}"{did_you_mean(name, known)}; or give the path of a .toml file')
    return known[name]


def as_toml(about: Mapping[str, Any], archs: Mapping[str, TunedArch], comment: str) -> str:
    """A recipe as text, the same for the same content."""
    lines = [*(f"# {line}" for line in comment.splitlines()), "[tuning]"]
    lines += [f"{key} = {_value(value)}" for key, value in about.items() if value is not None]
    for label, found in archs.items():
        lines += ["", f"[archs.{_value(label)}]", f"version = {_value(found.version)}"]
        lines += [f"settings = {_value(found.settings)}"]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A value in TOML, which has JSON's texts, numbers and truths, and tables of its own."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_value(key)} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)
