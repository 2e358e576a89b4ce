"""SAEs that others trained, or other runs: opened, placed in this run's model, and put beside its own.

What is imported is copied into the run's folder, translated, with where it is from. So the folder stays whole when the
source is gone, and evaluation, `verify` and the tables treat every SAE alike.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sae_bench.formats.foreign import ForeignSAE
from sae_bench.formats.open import find_sources, open_sae
from sae_bench.lm.activations import ActivationModel
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site
from sae_bench.records.names import file_name
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import SAEDescription
from sae_bench.registry import ARCHITECTURES
from sae_bench.runs.config import ImportedSAE, RunConfig
from sae_bench.runs.places import Located, locate, locate_in_world
from sae_bench.runs.plan import SAEPlan
from sae_bench.runs.train import write_sae
from sae_bench.saes.base import SAEConfig, SparseAutoencoder

log = logging.getLogger(__name__)

Opened = tuple[RunConfig, ImportedSAE, ForeignSAE]
"""An SAE, and the command that asked for it, which may say where it belongs."""


@dataclass(frozen=True)
class ImportPlan:
    """One SAE to be evaluated as it is."""

    source: ImportedSAE
    sae: ForeignSAE
    located: Located

    @property
    def site(self) -> Site:
        """Where it reads."""
        return self.located.site

    @property
    def id(self) -> str:
        """A name that is safe in a path, and the same for the same bytes alone."""
        return file_name(
            f"{self.sae.arch}.{self.site.name}.w{self.sae.d_sae}.{self.sae.format}.{self.source.sha256[:8]}"
        )

    @property
    def config(self) -> SAEConfig:
        return self.sae.config

    @property
    def n_parameters(self) -> int:
        return 2 * self.sae.d_in * self.sae.d_sae

    def build(self) -> SparseAutoencoder:
        """The SAE, loaded and checked."""
        return self.sae.build()

    def describe(self) -> SAEDescription:
        """What a record says of the SAE; what trained it is known of our own alone."""
        config = self.config
        unknown = {"target_l0": None, "coefficient": config.coefficient, "seed": None, "recipe": None}
        known = dict(self.sae.own["description"]) if self.sae.own else unknown | {"training": {"failure": None}}
        found = known | {
            "id": self.id,
            "arch": self.sae.arch,
            "label": known.get("label", self.sae.arch),
            "arch_version": known.get("arch_version", ARCHITECTURES[self.sae.arch].version),
            "site": asdict(self.site) | {"name": self.site.name},
            "d_in": config.d_in,
            "d_sae": config.d_sae,
            "options": config.options,
            "origin": {
                "format": self.sae.format,
                "source": self.source.source,
                "sha256": self.source.sha256,
                "hub_commit": self.sae.source.hub_commit,
                "site_from": self.located.read_from,
                "notes": list(self.located.notes),
            },
        }
        return SAEDescription.read(found, Path(self.source.source))


Plan = SAEPlan | ImportPlan
"""An SAE of a run, be it trained or imported."""


def name_sources(texts: Sequence[str]) -> list[dict[str, str]]:
    """Every SAE that arguments of `--sae` stand for, with the hash of its files: what a run's settings say of it."""
    sources = [source for text in texts for source in find_sources(text)]
    return [{"source": source.name, "sha256": source.sha256()} for source in sources]


def open_imports(config: RunConfig) -> list[Opened]:
    """See by their headers what the SAEs of a run are; nothing slow has happened before."""
    return [
        (part, imported, open_sae(source))
        for part in config.parts()
        for imported in part.saes
        for source in find_sources(imported.source)
    ]


def plan_imports(lm: ActivationModel, config: RunConfig, opened: Sequence[Opened]) -> list[ImportPlan]:
    """Find the site of every SAE in the model; each SAE once. What there is to know of one is said.

    Raises:
        UserError: a site is not known, or it has another width than the SAE.
    """
    plans = {}
    for part, imported, sae in opened:
        located = locate(lm, part, sae) if isinstance(lm, LanguageModel) else locate_in_world(lm, part, sae)
        plan = ImportPlan(imported.model_copy(update={"source": config.called_as(imported.source)}), sae, located)
        plans[plan.id] = plan
        for note in plan.located.notes:
            log.warning("--sae %s: %s", imported.source, note)
        model = sae.place.model
        if model and Path(model).name.lower() != Path(lm.name).name.lower():
            log.warning("--sae %s says that it is for %s, and is evaluated on %s", imported.source, model, lm.name)
    return list(plans.values())


def import_saes(lm: ActivationModel, config: RunConfig, plans: Sequence[ImportPlan], folder: RunFolder) -> None:
    """Copy SAEs into the run's folder, in the form that its own have."""
    for plan in plans:
        write_sae(folder, config, lm, plan.site, plan.build(), plan.describe())
