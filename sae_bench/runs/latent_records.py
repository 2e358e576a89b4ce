"""Records of tasks that need latents: what the task found, and what the harness knows of judge, cost and failures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sae_bench.autointerp.examples import MIN_FIRED
from sae_bench.autointerp.explainer import judged
from sae_bench.autointerp.latents import Latent
from sae_bench.autointerp.random_baseline import RandomSAE
from sae_bench.evaluation.loop import Candidate
from sae_bench.evaluation.task import EvalSetting
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import TokenStream
from sae_bench.records.files import write_sealed
from sae_bench.records.run_folder import RunFolder
from sae_bench.registry import TASKS
from sae_bench.runs.config import RunConfig
from sae_bench.runs.records import make_record, provenance_of
from sae_bench.saes.base import SAEConfig


@dataclass(frozen=True)
class Member:
    """An SAE of the run, or a random one beside it."""

    description: Mapping[str, Any]
    config: SAEConfig
    site: Site
    settings: Mapping[str, Any]
    """What its latents are collected by."""

    @property
    def id(self) -> str:
        return str(self.description["id"])

    @property
    def failed(self) -> bool:
        return self.description["training"]["failure"] is not None


@dataclass
class LatentRecords:
    """Writes the records of a run's latent tasks."""

    lm: LanguageModel
    config: RunConfig
    tasks: Sequence[str]
    folder: RunFolder
    held_out: TokenStream
    settings: dict[str, Any] | None

    def write(
        self, member: Member, latents: Sequence[Latent], facts: Mapping[str, Any], failure: str | None = None
    ) -> None:
        """The record of one SAE for every task."""
        with torch.device("meta"):  # a task about latents looks at no weight
            sae = RandomSAE(SAEConfig(d_in=member.config.d_in, d_sae=member.config.d_sae, l0=1))
        for name in self.tasks:
            task = TASKS[name]()
            candidate = Candidate(sae, member.site, {name: task})
            if failure or member.failed:
                candidate.failures[name] = failure or "its training failed"
            else:
                with candidate.guarded([name]):
                    task.start(EvalSetting(sae, torch.empty(0), 0, self.lm.device))
                    for latent in latents:
                        task.judged(judged(latent))
                    candidate.results[name] = task.finish()
                    json.dumps(candidate.results[name].details, allow_nan=False)
            record = make_record(
                candidate, name, member.description, provenance_of(self.lm, self.config, self.held_out)
            )
            self._complete(record, facts)
            write_sealed(self.folder.record_path(member.id, name), record)

    def _complete(self, record: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Add what the harness knows; metrics that no scorer was asked for are left out."""
        record["details"] = {"failures": {}, **record["details"], **facts}
        record["measured_on"] = "latents"
        asked = set(self.config.scorers)
        for part in ("metrics", "scores"):
            record[part] = {name: value for name, value in record[part].items() if name in asked}
        if self.settings is not None:
            record["details"] |= {"caption": self._caption(), "remarks": _remarks(record)}
        lost = record["details"]["failures"]
        if lost and not any(score["value"] is not None for score in record["scores"].values()):
            record["failure"] = record["failure"] or f"no answer of the judge could be used: {_counted(lost)}"

    def _caption(self) -> str:
        assert self.settings is not None, "there is a judge"
        judge, explainer, prompts = (self.settings[key] for key in ("judge", "explainer", "prompts"))
        versions = ", ".join(f"{name} {prompt['version']}" for name, prompt in prompts.items())
        floor = " Naming no excerpt scores 0.714 in saebench_detection." if "saebench_detection" in prompts else ""
        return (
            f"{', '.join(self.settings['scorers'])}: means over up to {self.settings['n_latents']} latents of each "
            f"SAE, ± over latents; explained by {explainer['model']}, judged by {judge['model']}, "
            f"prompts {versions}.{floor}"
        )


def _remarks(record: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know of one SAE: few latents, answers that never came."""
    details = record["details"]
    remarks = []
    asked = details["judge"]["n_latents"]
    if record["failure"] is None and len(details["latents"]) < asked:
        remarks.append(f"{len(details['latents'])} latents instead of {asked}: no more fired {MIN_FIRED} times")
    unscored = {name: sum(notes.values()) for name, notes in details.get("unscored", {}).items() if notes}
    remarks += [f"{n} latents without a score in {name}" for name, n in unscored.items() if name in record["scores"]]
    if details["failures"]:
        n_lost, n_calls = sum(details["failures"].values()), details["cost"]["calls"]
        remarks.append(f"{n_lost} of {n_calls} answers failed or were cut short: {_counted(details['failures'])}")
    return remarks


def _counted(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(failures.items()))
