"""What a run will train: every SAE of it, named and checked before anything long begins."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import product
from typing import Any

import torch
from pydantic import ValidationError

from sae_bench.errors import UserError, did_you_mean
from sae_bench.evaluation.task import default_tasks
from sae_bench.lm.activations import ActivationModel
from sae_bench.lm.sites import Site
from sae_bench.records.names import file_name
from sae_bench.records.schema import SAEDescription, SiteDescription
from sae_bench.registry import ARCHITECTURES, SCORERS, TASKS
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.config import RunConfig
from sae_bench.runs.tuned import TunedRecipe
from sae_bench.saes.base import SAEConfig, SparseAutoencoder
from sae_bench.training.recipe import Preset, Recipe, recipe_for


@dataclass(frozen=True)
class SAEPlan:
    """One SAE to be trained."""

    arch: ArchSpec
    site: Site
    config: SAEConfig
    recipe: Recipe
    tuned_by: str | None = None
    """The recipe that its settings are from, where that is not the run's own but an added one."""

    @cached_property
    def id(self) -> str:
        """A name that is safe in a path; `plan_saes` sees to it that no two SAEs of a run share one."""
        config = self.config
        sparsity = f"{'l0' if config.l0 is not None else 'c'}_{config.sparsity:g}"
        return file_name(f"{self.arch.label}.{self.site.name}.w{config.d_sae}.{sparsity}.seed{config.seed}")

    def build(self) -> SparseAutoencoder:
        """The untrained SAE."""
        return ARCHITECTURES[self.arch.name](self.config)

    @cached_property
    def n_parameters(self) -> int:
        """Numbers to train, counted without allocating any."""
        config = self.config.model_copy(update={"seed": 0})  # a sweep asks this of thousands, which differ in little
        return _n_parameters(ARCHITECTURES[self.arch.name], config.model_dump_json())

    def describe(self) -> SAEDescription:
        """What a record says of the SAE."""
        described = SAEDescription(
            id=self.id,
            arch=self.arch.name,
            label=self.arch.label,
            arch_version=ARCHITECTURES[self.arch.name].version,
            site=SiteDescription(**asdict(self.site), name=self.site.name),
            d_in=self.config.d_in,
            d_sae=self.config.d_sae,
            target_l0=self.config.l0,
            coefficient=self.config.coefficient,
            seed=self.config.seed,
            control=ARCHITECTURES[self.arch.name].is_control,
            options=self.config.options,
            recipe=self.recipe.model_dump(mode="json"),
        )
        return described.model_copy(update={"tuned_by": self.tuned_by}) if self.tuned_by else described


@cache
def _n_parameters(architecture: type[SparseAutoencoder], config: str) -> int:
    with torch.device("meta"):
        sae = architecture(SAEConfig.model_validate_json(config))
    return sum(parameter.numel() for parameter in sae.parameters())


def check_names(config: RunConfig) -> None:
    """Raise UserError if an architecture, a task or a scorer of the run does not exist, before anything slow."""
    for arch in [arch for part in config.parts() for arch in part.archs]:
        ARCHITECTURES[arch.name]
    for task in tasks_of(config):
        TASKS[task]
    for scorer in config.scorers:
        SCORERS[scorer]


def tasks_of(config: RunConfig) -> tuple[str, ...]:
    """The tasks of the run: what is asked for now, and what earlier commands asked for of the same folder."""
    asked = [*(part["tasks"] for part in config.earlier), config.tasks]
    named = [
        name
        for tasks in asked
        if tasks is not None
        for name in tasks or default_tasks(features_known=bool(config.world))
    ]
    return tuple(dict.fromkeys(named))


def plan_saes(config: RunConfig, lm: ActivationModel) -> list[SAEPlan]:
    """Every SAE of the run: architectures x sites x widths x sparsities x seeds of each command that asked for some.

    Raises:
        UserError: a site, an architecture or one of its settings does not exist, or a setting's value is out of range.
    """
    return _distinct([plan for part in config.parts() for plan in _plans(part, lm)])


def _plans(config: RunConfig, lm: ActivationModel) -> list[SAEPlan]:
    """Those of one command."""
    if not config.archs:
        return []  # SAEs from elsewhere say their own sites
    sites = lm.find_sites(config.sites, config.layers)
    sparsities = [*({"l0": l0} for l0 in config.l0s), *({"coefficient": value} for value in config.sparsity)]
    added = {label: recipe.title for recipe in config.added_recipes for label in recipe.archs}
    plans = [
        SAEPlan(
            arch, site, SAEConfig(d_in=site.d_in, d_sae=d_sae, seed=seed, options=options, **wanted), recipe, tuned_by
        )
        for arch in config.archs
        for options, recipe in [settle(arch, config.preset, config.tuned)]
        for tuned_by in [added.get(tuned_as(arch)) if ARCHITECTURES[arch.name].is_trained else None]
        for site, d_sae, seed, wanted in product(sites, config.widths, config.seeds, sparsities)
    ]
    for plan in plans:
        check_l0(plan.arch.label, plan.config.l0 or 0, plan.config.d_sae)
        try:
            ARCHITECTURES[plan.arch.name].check(plan.config)
        except ValueError as error:
            raise UserError(f"{plan.arch.label}: {error}") from None
    return plans


def check_l0(label: str, l0: float, width: int) -> None:
    """Raise UserError if more latents are wanted than there are."""
    if l0 > width:
        raise UserError(f"{label}: l0 {l0:g} is more than the width, {width}: lower --l0")


def _distinct(plans: Sequence[SAEPlan]) -> list[SAEPlan]:
    """Every plan once; two of one name would share a folder, on some systems even if the names differ in case."""
    named: dict[str, SAEPlan] = {}
    for plan in plans:
        other = named.setdefault(plan.id.lower(), plan)
        if other != plan:
            raise UserError(
                f"two SAEs would be called {plan.id}, {other.arch.settings} at {other.config.sparsity!r} and "
                f"{plan.arch.settings} at {plan.config.sparsity!r}: make their settings differ in more than "
                "punctuation, case or the seventh digit"
            )
    return list(named.values())


def training_bytes(plans: Sequence[SAEPlan]) -> int:
    """Memory for training some SAEs at once, activations apart.

    Weights and two Adam moments of every SAE; the gradients of one at a time, and as much again in temporaries.
    """
    parameters = [4 * plan.n_parameters for plan in plans]
    return 3 * sum(parameters) + 2 * max(parameters)


def training_disk_bytes(plans: Sequence[SAEPlan]) -> int:
    """Disk for training some SAEs: their weights, and at the height three checkpoints with two Adam moments each."""
    return (1 + 3 * 3) * sum(4 * plan.n_parameters for plan in plans)


def check_tuned(archs: Iterable[ArchSpec], tuned: TunedRecipe) -> None:
    """Raise UserError unless a recipe has all of these that are trained, in their versions of today."""
    trained = [arch for arch in archs if ARCHITECTURES[arch.name].is_trained]
    tuned.check_archs(
        {tuned_as(arch): ARCHITECTURES[ARCHITECTURES[arch.name].tuned_as or arch.name].version for arch in trained}
    )


def tuned_as(arch: ArchSpec) -> str:
    """By what name a recipe has it."""
    return ARCHITECTURES[arch.name].tuned_as or arch.label


def settle(arch: ArchSpec, preset: Preset, tuned: TunedRecipe | None = None) -> tuple[dict[str, Any], Recipe]:
    """An architecture's options and recipe: the preset, its departures from that, what was tuned, the user's settings.

    Raises:
        UserError: a setting is neither an option of the architecture nor a field of the recipe, or out of range; or
            others were tuned and this architecture was not.
    """
    cls = ARCHITECTURES[arch.name]
    of_options, of_recipe = set(cls.options_type.model_fields), set(Recipe.model_fields)
    found: dict[str, float | int] = {}
    if tuned is not None and cls.is_trained:
        check_tuned([arch], tuned)
        found = tuned.archs[tuned_as(arch)].settings
    settings = {**cls.departures(preset, arch.settings), **found, **arch.settings}
    for key in settings:
        if key not in of_options | of_recipe:
            meant = did_you_mean(key, of_options | of_recipe)
            raise UserError(f'architecture {arch.name}: unknown setting "{key}"{meant}')
    options = {key: value for key, value in settings.items() if key in of_options}
    departures = {key: value for key, value in settings.items() if key in of_recipe}
    try:
        return cls.options_type(**options).model_dump(mode="json"), recipe_for(preset, departures)
    except ValidationError as error:
        first = error.errors()[0]
        setting = f"{first['loc'][0]}: {first['msg']} (given: {first['input']!r})"
        raise UserError(f"architecture {arch.name}: {setting}") from None
