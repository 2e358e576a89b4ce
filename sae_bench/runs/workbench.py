"""What a process needs to work on a run, and what it finds out before the work begins."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

from sae_bench.activations_cache.model import CachedModel
from sae_bench.leaderboard.bootstrap import MIN_DOCUMENTS
from sae_bench.leaderboard.captions import few_documents
from sae_bench.lm.corpus import corpus_hash
from sae_bench.lm.fingerprint import Identity, fingerprint
from sae_bench.lm.sites import Site
from sae_bench.progress import Progress
from sae_bench.records.schema import Provenance, SAEDescription, Training
from sae_bench.registry import TASKS
from sae_bench.runs.checks import repeats
from sae_bench.runs.config import RunConfig
from sae_bench.runs.import_saes import Plan, open_imports, plan_imports
from sae_bench.runs.kernels import measured_kernels, shape_of
from sae_bench.runs.plan import SAEPlan, plan_saes, tasks_of, training_disk_bytes
from sae_bench.runs.provenance import environment
from sae_bench.runs.records import inapplicable, provenance_of
from sae_bench.runs.sources import load_model, token_stream
from sae_bench.saes.base import SAEConfig
from sae_bench.saes.kernels import Crossovers


@dataclass(frozen=True)
class PlannedSAE:
    """An SAE of a run as those see it who have no language model at hand."""

    description: SAEDescription
    config: SAEConfig
    site: Site

    @classmethod
    def of(cls, plan: Plan) -> Self:
        return cls(plan.describe(), plan.config, plan.site)

    @property
    def id(self) -> str:
        return self.description.id

    def failed(self, reason: str) -> "PlannedSAE":
        """This SAE after work on it ended without one."""
        training = Training(failure=reason)
        return replace(self, description=self.description.model_copy(update={"training": training}))


@dataclass(frozen=True)
class RunOutline:
    """What is known of a run before its work begins; all of it is the same wherever the work is done."""

    saes: tuple[PlannedSAE, ...]
    kernels: Mapping[str, Crossovers]
    """For each shape of the SAEs to train, where one way of computing overtakes another: other kernels round otherwise,
    so all of a run's SAEs go by one measurement."""
    model: Identity
    """All that decides the language model's numbers; see `lm.fingerprint`."""
    dataset_sha256: str | None
    """Of the corpus; None where nobody reads it whole."""
    environment: Mapping[str, Any]
    """Versions, device and threads, where the work is done."""
    inapplicable: Mapping[str, str]
    """The tasks that do not apply to what gives the run's activations, and why."""
    disk_bytes: Mapping[str, int]
    """What each SAE to train takes on the disk at the height, with checkpoints."""

    @property
    def model_fingerprint(self) -> str:
        return fingerprint(self.model)


class Workbench:
    """What gives a run's activations, its plans and its held-out tokens.

    Raises:
        UserError: something that the run names does not exist, or does not go together.
    """

    def __init__(self, config: RunConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress
        opened = open_imports(config)
        self.lm = load_model(config, progress)
        plans: list[Plan] = [*plan_saes(config, self.lm), *plan_imports(self.lm, config, opened)]
        self.plans = {plan.id: plan for plan in plans}
        self.held_out = token_stream(self.lm, config, "eval", config.n_held_out)

    @contextmanager
    def keeping_activations(self) -> Iterator[None]:
        """Where there is a cache of activations, it has on the disk what this block captured, however that ends."""
        try:
            yield
        finally:
            if isinstance(self.lm, CachedModel):
                self.lm.store.flush()
                if told := self.lm.told():
                    self.progress.say(told)

    def outline(self, kernels: Mapping[str, Crossovers] | None = None) -> RunOutline:
        """What the run will be; `kernels` are those that it was begun with."""
        trained = [plan for plan in self.plans.values() if isinstance(plan, SAEPlan)]
        known = kernels or {}
        unknown = [plan for plan in trained if shape_of(plan) not in known]
        kernels = {**known, **measured_kernels(self.config, unknown, self.lm.device, self.progress)}
        saes = tuple(PlannedSAE.of(plan) for plan in self.plans.values())
        reasons = {name: inapplicable(TASKS[name], self.lm) for name in tasks_of(self.config)}
        return RunOutline(
            saes,
            kernels,
            self.lm.identity(),
            None if self.config.world else corpus_hash(self.config.dataset),
            environment(self.lm.device),
            {name: reason for name, reason in reasons.items() if reason},
            {plan.id: training_disk_bytes([plan]) for plan in trained},
        )

    def read_held_out(self) -> None:
        """See that there is enough text to evaluate on: what is wrong with it shows before anything long begins."""
        if self.held_out.n_delivered:
            return
        if self.config.world is None:
            self.progress.say(f"reading {self.config.dataset}")
        self.held_out.read()
        n_documents, of = self.held_out.n_documents, "tokens" if self.config.world is None else "samples"
        self.progress.say(f"evaluating on {self.held_out.n_delivered:,} held-out {of} of {n_documents:,} documents")
        for line in repeats(self.config):
            self.progress.say(line)
        if n_documents < MIN_DOCUMENTS:
            self.progress.say(few_documents(n_documents))

    def provenance(self) -> Provenance:
        """What every record of the run repeats."""
        if not self.held_out.n_delivered:
            self.held_out.read()
        return provenance_of(self.lm, self.config, self.held_out)
