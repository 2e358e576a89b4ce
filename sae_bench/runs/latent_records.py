"""Records of tasks about latents: what the task found, and what the harness knows of judge, cost and failures."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_bench.autointerp import judges
from sae_bench.autointerp.examples import MIN_FIRED
from sae_bench.autointerp.explainer import judged
from sae_bench.autointerp.latents import LatentFile
from sae_bench.autointerp.scorer import Scorer
from sae_bench.evaluation.task import LatentTask, Result
from sae_bench.lm.sites import Site
from sae_bench.records.files import digest_of
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import JUDGED_BY, NO_JUDGE, ON_LATENTS, Provenance, Record, SAEDescription, write_record
from sae_bench.runs.records import inapplicable_record, make_record
from sae_bench.saes.base import SAEConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InterpretedSAE:
    """An SAE of the run, or a random one beside it."""

    description: SAEDescription
    config: SAEConfig
    site: Site
    collected_by: Mapping[str, Any]
    """The settings that its latents are collected by."""
    not_collected: str | None = None
    """Why they were not, where its cell failed before that."""

    @property
    def id(self) -> str:
        return self.description.id

    @property
    def failure(self) -> str | None:
        """Why there is nothing to interpret, if there is not."""
        return self.description.training.failure or self.not_collected


@dataclass(frozen=True)
class LatentRecords:
    """Writes the records of a run's latent tasks."""

    folder: RunFolder
    tasks: Mapping[str, type[LatentTask]]
    scorers: Sequence[Scorer]
    settings: Mapping[str, Any] | None
    """Of the judges; None if there are none."""
    provenance: Callable[[], Provenance]
    inapplicable: Mapping[str, str]
    """The tasks that do not apply to what gives the run's activations, and why."""

    def write(
        self, sae: InterpretedSAE, latents: Sequence[LatentFile], facts: Mapping[str, Any], failure: str | None = None
    ) -> None:
        """The record of one SAE for every task."""
        for name, cls in self.tasks.items():
            task = cls([scorer.metric for scorer in self.scorers])
            if name in self.inapplicable:
                record = inapplicable_record(task, self.inapplicable[name], sae.description, self.provenance())
                about = {"details": dict(facts), "measured_on": ON_LATENTS}
                write_record(self.folder.record_path(sae.id, name), record.model_copy(update=about))
                continue
            problem = failure or sae.failure
            result, problem = (None, problem) if problem else _found(task, latents)
            record = make_record(task, result, problem, sae.description, self.provenance())
            write_record(self.folder.record_path(sae.id, name), self._complete(record, facts))

    def _complete(self, record: Record, facts: Mapping[str, Any]) -> Record:
        """The record with what the harness knows."""
        details = {"failures": {}, **record.details, **facts}
        known: dict[str, Any] = {"details": details, "measured_on": ON_LATENTS}
        lost = details["failures"]
        if lost and not any(score.value is not None for score in record.scores.values()):
            known["failure"] = record.failure or f"no answer of the judge could be used: {_counted(lost)}"
        if self.settings is not None:
            known |= {
                "comparable": {JUDGED_BY: digest_of(self.settings)},
                "caption": self._caption(self.settings),
                "remarks": [*record.remarks, *_remarks(record, details)],
            }
        elif record.failure is None:
            known |= {"not_measured": NO_JUDGE, "caption": judges.NO_JUDGE}
        return record.model_copy(update=known)

    def _caption(self, settings: Mapping[str, Any]) -> str:
        versions = ", ".join(f"{name} {prompt['version']}" for name, prompt in settings["prompts"].items())
        means = (
            f"{', '.join(settings['scorers'])}: means over up to {settings['n_latents']} latents of each SAE, ± over "
            f"latents; explained by {settings['explainer']['model']}, judged by {settings['judge']['model']}, prompts "
            f"{versions}."
        )
        return " ".join([means, *(scorer.caption for scorer in self.scorers if scorer.caption)])


def _found(task: LatentTask, latents: Sequence[LatentFile]) -> tuple[Result | None, str | None]:
    """What the task makes of the latents, or why it failed: it may be a plugin."""
    try:
        for latent in latents:
            task.update(judged(latent))
        return task.finish().checked(), None
    except Exception as error:
        log.exception("%s failed", task.name)
        return None, f"{type(error).__name__}: {error}"


def _remarks(record: Record, details: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know of one SAE: few latents, answers that never came."""
    remarks = []
    asked = details["judge"]["n_latents"]
    if record.failure is None and len(details["latents"]) < asked:
        remarks.append(f"{len(details['latents'])} latents instead of {asked}: no more fired {MIN_FIRED} times")
    unscored = {name: sum(notes.values()) for name, notes in details.get("unscored", {}).items() if notes}
    remarks += [f"{n} latents without a score in {name}" for name, n in unscored.items() if name in record.scores]
    if details["failures"]:
        n_lost, n_calls = sum(details["failures"].values()), details["cost"]["calls"]
        remarks.append(f"{n_lost} of {n_calls} answers failed or were cut short: {_counted(details['failures'])}")
    return remarks


def _counted(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(failures.items()))
