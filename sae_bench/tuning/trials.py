"""What is tried: the same places in every architecture's ranges, its preset's own settings first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, ValidationError

from sae_bench.errors import UserError
from sae_bench.registry import ARCHITECTURES
from sae_bench.runs.arch_spec import ArchSpec, Strict
from sae_bench.runs.plan import settle
from sae_bench.saes.knobs import LR, MOST
from sae_bench.training.recipe import Preset


class TuneSettings(Strict):
    """How much is tried: the same for every architecture."""

    trials: int = Field(default=9, ge=2)
    rungs: int = Field(default=2, ge=1)
    factor: int = Field(default=3, ge=2)
    check_seeds: int = Field(default=3, ge=2)

    @classmethod
    def build(cls, **given: Any) -> "TuneSettings":
        """Raise UserError where one of them is no such number; the message calls it by its flag."""
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            flag = str(first["loc"][0]).replace("_", "-")
            raise UserError(f"--{flag}: {first['msg'].removeprefix('Input ')} (given: {first['input']!r})") from None

    def n_kept(self, rung: int) -> int:
        """Trials of each architecture in a rung."""
        return self.trials // int(self.factor**rung)

    def share(self, rung: int) -> int:
        """What the tokens of the last rung are divided by in this one."""
        return int(self.factor ** (self.rungs - 1 - rung))

    def check(self) -> None:
        """Raise UserError where the last rung would have no trial."""
        if not self.n_kept(self.rungs - 1):
            n = self.factor ** (self.rungs - 1)
            raise UserError(
                f"--trials {self.trials}: of each {self.factor} one goes on, so {self.rungs} rungs need {n} at least: "
                "raise it, or lower --rungs"
            )


@dataclass(frozen=True)
class Trial:
    """One setting of an architecture's knobs; number 0 is what the preset has."""

    arch: ArchSpec
    """As the user asked for it."""
    number: int
    settings: dict[str, float]

    @property
    def spec(self) -> ArchSpec:
        """What is trained."""
        return ArchSpec(name=self.arch.name, settings={**self.arch.settings, **self.settings})


def trials_of(arch: ArchSpec, preset: Preset, n: int) -> list[Trial]:
    """The preset's setting and n - 1 others.

    They are the first points of one Sobol sequence, scrambled by a seed that never changes: number 3 has the same
    learning rate for every architecture, and its first knob at the same share of its range.

    Raises:
        UserError: the architecture is asked for with a setting that is to be found.
    """
    knobs = {"lr": LR, **ARCHITECTURES[arch.name].knobs}
    if given := knobs.keys() & arch.settings.keys():
        name = sorted(given)[0]
        raise UserError(f"--arch {arch.label}: {name} is what `tune` looks for: leave it out")
    options, recipe = settle(arch, preset)
    start = {**recipe.model_dump(), **options}
    places = torch.quasirandom.SobolEngine(1 + MOST, scramble=True, seed=0).draw(n - 1).tolist()
    ranges = {name: knob.of(start[name]) for name, knob in knobs.items()}
    found = [{name: start[name] for name in knobs}]
    found += [
        {name: knob.at(share) for (name, knob), share in zip(ranges.items(), place, strict=False)} for place in places
    ]
    return [Trial(arch, number, settings) for number, settings in enumerate(found)]


def tuned_archs(archs: tuple[ArchSpec, ...]) -> tuple[list[ArchSpec], list[str]]:
    """Those that have something to tune, and a line for each that has not.

    Raises:
        UserError: there are none.
    """
    own = [arch for arch in archs if _why_not(arch) is None]
    if not own:
        raise UserError("--arch: nothing of this is trained by settings of its own: name an architecture that is")
    return own, list(_said(archs))


def _said(archs: tuple[ArchSpec, ...]) -> Iterator[str]:
    for arch in archs:
        if why := _why_not(arch):
            yield f"{arch.label} {why}"


def _why_not(arch: ArchSpec) -> str | None:
    cls = ARCHITECTURES[arch.name]
    if not cls.is_trained:
        return "is not trained: there is nothing to tune"
    return None if cls.tuned_as is None else f"takes what is found for {cls.tuned_as}"
