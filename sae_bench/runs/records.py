"""Records: one for every (SAE, task), with its numbers or the reason why there are none, and where they come from."""

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae_bench.activations_cache.model import CachedModel
from sae_bench.evaluation.task import BaseTask, LatentTask, Result, Task, TextTask
from sae_bench.lm.activations import ActivationModel, ContextStream, KnownFeatures
from sae_bench.lm.corpus import describe
from sae_bench.lm.fingerprint import fingerprint
from sae_bench.records.schema import NOT_APPLICABLE, Provenance, Record, SAEDescription, Score
from sae_bench.registry import TASKS
from sae_bench.runs.config import RunConfig
from sae_bench.runs.provenance import environment


def is_missing(
    record: Record | None,
    task: str,
    description: SAEDescription,
    config_hash: str,
    model_fingerprint: str,
    siblings: Sequence[SAEDescription] = (),
    comparable: Mapping[str, str] | None = None,
) -> bool:
    """Whether there is no record of this SAE, task and model as they are now; what failed in evaluation is missing.

    `comparable` is the identity of the task's own text, if it brings any.
    """
    if record is None:
        return True
    if record.siblings != hashes_of(siblings) or (comparable is not None and record.comparable != comparable):
        return True
    made = record.provenance
    then = made.config_hash, made.model_fingerprint, record.task_version, record.sae.weights_sha256, record.failure
    now = config_hash, model_fingerprint, TASKS[task].version, description.weights_sha256, description.training.failure
    return then != now


def applies(task: type[BaseTask], *, in_world: bool) -> bool:
    """Whether a task applies to a run in a synthetic world, or to one on a language model."""
    return not (_asks_for_a_language_model(task) if in_world else _asks_for_the_truth(task))


def inapplicable(task: type[BaseTask], lm: ActivationModel) -> str | None:
    """Why a task does not apply to what gives a run's activations; None where it does."""
    if _asks_for_a_language_model(task) and lm.no_language_model:
        return f"{task.name} does not apply: {lm.no_language_model}"
    if _asks_for_the_truth(task) and not isinstance(lm, KnownFeatures):
        return f"{task.name} does not apply: features are known of a synthetic world alone (--model synthetic)"
    return None


def _asks_for_a_language_model(task: type[BaseTask]) -> bool:
    return issubclass(task, LatentTask | TextTask) or (issubclass(task, Task) and task.needs_lm_loss)


def _asks_for_the_truth(task: type[BaseTask]) -> bool:
    return issubclass(task, Task) and task.needs_truth


def inapplicable_record(task: BaseTask, reason: str, description: SAEDescription, provenance: Provenance) -> Record:
    """One (SAE, task) of which there is nothing to measure; that is no failure, and the record stands."""
    if description.training.failure:
        return make_record(task, None, None, description, provenance)
    nothing = Result({metric.name: Score(None, None, 0, note=reason) for metric in task.metrics})
    record = make_record(task, nothing, None, description, provenance)
    return record.model_copy(update={"not_measured": NOT_APPLICABLE, "caption": f"{reason}."})


def make_record(
    task: BaseTask | type[BaseTask],
    result: Result | None,
    failure: str | None,
    description: SAEDescription,
    provenance: Provenance,
    siblings: Sequence[SAEDescription] = (),
) -> Record:
    """One (SAE, task): its values, or why there are none."""
    failure = description.training.failure or failure
    assert (result is None) == (failure is not None), "an SAE is evaluated unless its training failed"
    return Record(
        task=task.name,
        task_version=task.version,
        failure=failure,
        metrics={metric.name: metric for metric in task.metrics},
        scores=result.scores if result else {},
        by_document=result.by_document if result else {},
        per_latent=result.per_latent if result else {},
        details=result.details if result else {},
        sae=description,
        provenance=provenance,
        siblings=hashes_of(siblings),
        remarks=list(description.training.remarks),
        caption=f"{description.site.name}: {result.caption}." if result and result.caption else None,
    )


def siblings_among(saes: Iterable[SAEDescription]) -> dict[str, list[SAEDescription]]:
    """For each of some SAEs, by name, those that differ from it in the seed alone."""
    alike: dict[tuple[object, ...], list[SAEDescription]] = {}
    of: dict[str, tuple[SAEDescription, list[SAEDescription]]] = {}
    for sae in saes:
        recipe = json.dumps(sae.recipe, sort_keys=True)
        what = sae.label, sae.site.name, sae.d_sae, sae.target_l0, sae.coefficient, recipe, sae.origin and sae.id
        of[sae.id] = sae, alike.setdefault(what, [])
        if not sae.training.failure:
            of[sae.id][1].append(sae)
    return {name: [other for other in group if other.id != sae.id] for name, (sae, group) in of.items()}


def hashes_of(siblings: Sequence[SAEDescription]) -> list[str]:
    """The siblings as records name them."""
    return sorted(one.weights_sha256 for one in siblings)


def provenance_of(lm: ActivationModel, config: RunConfig, stream: ContextStream) -> Provenance:
    """What every record of a run repeats."""
    about: dict[str, Any] = {**environment(lm.device), **where_kept(lm)}
    return Provenance(
        **about,
        model=lm.name,
        model_revision=lm.revision,
        model_sha256=lm.weight_hash(),
        model_fingerprint=fingerprint(lm.identity()),
        tokenizer_sha256=lm.tokenizer_hash(),
        lm_dtype=lm.precision,
        sae_dtype="float32",
        dataset=describe(config.called_as(stream.source)),
        eval_fingerprint=stream.fingerprint,
        eval_tokens=stream.n_delivered,
        eval_documents=stream.n_documents,
        preset=config.preset,
        config=config.of_evaluation,
        config_hash=config.evaluation_hash,
        time=now(),
    )


def where_kept(lm: ActivationModel) -> dict[str, str]:
    """What a record says of the cache that the activations were kept in, if they were."""
    return {"activations": lm.cached_as} if isinstance(lm, CachedModel) else {}


def now() -> str:
    """The time, as records give it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
