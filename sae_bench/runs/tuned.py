"""Settings that `tune` found, as files that a run names with `--recipe`: TOML, one table for each architecture.

[tuning]                        where they come from: model, text, tokens, seeds, L0s, trials, versions, hashes
[archs.topk]                    by the name that the run gives the architecture: archs."gated:penalty=ri_l1"
version = "1"                   of the architecture; another one learns something else
settings = { lr = 0.004 }

Beside it, or in a folder of its name, are the trials that it was chosen from, as `tune` leaves them; it is not read
without. An architecture that came later has a file of its own, and a run names both: these must come of equal searches.
"""

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from sae_bench.errors import UserError, did_you_mean
from sae_bench.records.files import digest_of, read_sealed
from sae_bench.runs.arch_spec import Strict

PART = "tuning"
"""The part of every corpus and world that is tuned on, as `near_duplicates.Part` has it."""

CHECK = "check"
"""The last run of a search: the winners and the preset, with other seeds on other text."""

SEARCHED = (
    "revision", "layers", "sites", "widths", "l0s", "seeds", "split", "tokens", "reuse", "batch_size", "buffer_tokens",
    "context_size", "eval_tokens", "eval_skip", "preset", "part",
)  # fmt: skip
"""What of a search's last rung, as its configuration says it, stands in the recipe."""

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


def rung_name(rung: int) -> str:
    """The run of a rung, from 0."""
    return f"rung_{rung + 1}"


def runs_of(rungs: int) -> list[str]:
    """The runs of a search; each has a file of its trials.

    Raises:
        ValueError: no search has so many rungs, as each has half the trials of the one before, or fewer.
    """
    if type(rungs) is not int or not 0 <= rungs < 64:
        raise ValueError(f"{rungs!r} rungs")
    return [*map(rung_name, range(rungs)), CHECK]


def read_recipe(name: str, flag: str = "--recipe") -> TunedRecipe:
    """Read a recipe: a path, or the name of one that comes with the project.

    Raises:
        UserError: there is none, or it is no recipe that `tune` has written, or it says other things than its trials.
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
        found = TunedRecipe(
            name=path.stem,
            path=name,
            dataset=str(about.get("dataset", "")),
            sha256=digest,
            preset=about["preset"],
            split=about.get("split"),
            search=about,
            archs=archs,
        )
        if len(runs_of(about["rungs"])) < 2 or "trials_sha256" not in about:
            raise ValueError("no search")
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{flag} {name}: `tune` writes recipes, and this is none of them: give another file") from None
    _check_trials(found, path, f"{flag} {name}")
    return found


def _check_trials(recipe: TunedRecipe, path: Path, who: str) -> None:
    """See that trials bear a recipe out: boards call tuned whatever was trained by it.

    Which of the two in the check was chosen is not seen; and trials that were made up bear out what was made of them.

    Raises:
        UserError: they are not there, or it has settings that they have not, or says that it was looked for otherwise.
    """
    names = [f"{name}.json" for name in runs_of(recipe.search["rungs"])]
    own = path.with_suffix("")
    places = [own, path.parent, path.resolve().with_suffix(""), path.resolve().parent]  # a link's are where it leads
    missing = [[name for name in names if name not in {file.name for file in place.glob("*.json")}] for place in places]
    if fewest := min(missing, key=lambda names: len(names)):
        raise UserError(
            f"{who}: the trials that it was chosen from are not beside it ({', '.join(fewest)}): name "
            f"it in the folder where `tune` wrote it, or copy the trials, too, to {own}"
        )
    folder = places[missing.index([])]
    said = [_read_trials(folder / name, who) for name in names]
    if digest_of([of["trials"] for of in said]) != recipe.search["trials_sha256"]:
        raise UserError(f"{who}: the trials in {folder} are of another search: bring its own to {own}")
    tried = [(one["arch"], one["settings"]) for one in said[-1]["trials"]]
    if others := [label for label, of in recipe.archs.items() if (label, of.settings) not in tried]:
        raise UserError(
            f"{who}: no trial of the check had its settings of {', '.join(others)}: what was changed by hand is not "
            "what was found; give settings of your own without a recipe (--arch topk:lr=0.002)"
        )
    first, last, check = said[0]["trials"], said[-2], said[-1]
    made = {name: last["config"][name] for name in SEARCHED if name in last["config"]}
    made |= {name: check[name] for name in ("model", "dataset", "versions", "model_sha256")}
    trials = {*Counter(one["arch"] for one in first).values()}
    made["trials"] = trials.pop() if len(trials) == 1 else sorted(trials)
    made["check_seeds"] = len({sae["seed"] for one in check["trials"] for sae in one["saes"]})
    for name in [name for name, of in made.items() if recipe.search.get(name) != of]:
        raise UserError(
            f"{who} says {name} {recipe.search.get(name)!r:.200}, and its trials {made[name]!r:.200}: bring back what "
            "`tune` wrote"
        )


def _read_trials(file: Path, who: str) -> dict[str, Any]:
    """What the file of a rung says, with all that is looked for in it.

    Raises:
        UserError: it is damaged, or of another form.
    """
    try:
        said = read_sealed(file)
        wanted = [dict(said["config"]), *(said[name] for name in ("model", "dataset", "versions", "model_sha256"))]
        wanted += [(one["arch"], one["settings"], {sae["seed"] for sae in one["saes"]}) for one in said["trials"]]
        if not said["trials"]:
            raise ValueError("no trial")
    except (UserError, LookupError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{who}: its trials in {file} are damaged, or of another form than this version writes: bring back what "
            "`tune` wrote"
        ) from None
    return said


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
