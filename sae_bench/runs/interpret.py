"""The interpretability stage: have the latents that were collected judged, and write the records.

It comes after all cells and speaks with them through the run's folder alone. A record is made again when it was made
by another judge, other prompts or scorers, or when answers are missing that another attempt may get. Without a judge a
record says so.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from sae_bench.autointerp.budget import Tally
from sae_bench.autointerp.client import TRANSIENT, Client, EndpointUnusable
from sae_bench.autointerp.explainer import cost_of, judge_latent
from sae_bench.autointerp.forecast import forecast
from sae_bench.autointerp.judges import Judges, judge_settings, judges_of, scorers_of, spending_of
from sae_bench.autointerp.latents import LatentFile, examples_of, read_latents
from sae_bench.evaluation.task import LatentTask
from sae_bench.progress import Progress
from sae_bench.records import lineage
from sae_bench.records.files import as_sealed, write_sealed
from sae_bench.records.names import cache_folder
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Provenance, Record, write_record
from sae_bench.runs.config import RunConfig
from sae_bench.runs.latent_records import InterpretedSAE, LatentRecords
from sae_bench.runs.records import is_missing

log = logging.getLogger(__name__)


def interpret_saes(
    config: RunConfig,
    saes: Sequence[InterpretedSAE],
    tasks: Mapping[str, type[LatentTask]],
    folder: RunFolder,
    provenance: Callable[[], Provenance],
    progress: Progress,
    inapplicable: Mapping[str, str],
) -> None:
    """Write the missing records of tasks about latents; `inapplicable` says which do not apply here, and why."""
    if not tasks:
        return
    judges = None if inapplicable.keys() >= tasks.keys() else judges_of(config)
    settings = judge_settings(config, judges, config.interp_tokens_wanted)

    def is_due(sae: InterpretedSAE, task: str) -> bool:
        record = folder.record(sae.id, task)
        changed = _changed(folder, sae, record)
        model = sae.collected_by["model_fingerprint"]
        if record is None or sae.not_collected:
            return True
        if is_missing(record, task, sae.description, config.evaluation_hash, model):
            return True
        if sae.failure:
            return False
        if settings is None:  # what a judge said stands without one
            if changed:
                _mark(folder, record, changed)
            return False
        details = record.details
        return bool(changed or details["judge"] != settings or any(details["failures"].get(of) for of in TRANSIENT))

    due = [sae for sae in saes if any(is_due(sae, task) for task in tasks)]
    if not due:
        return
    records = LatentRecords(folder, tasks, scorers_of(config), settings, provenance, inapplicable)
    if judges is None:
        for sae in due:
            records.write(sae, (), {"judge": None})
        return
    client = Client(
        cache_folder() / "judge",
        spending_of(config, judges),
        concurrency=config.judge_concurrency,
        timeout=config.judge_timeout,
    )
    asyncio.run(_judge(client, judges, due, records, progress))


def _changed(folder: RunFolder, sae: InterpretedSAE, record: Record | None) -> list[str]:
    """What a record was made from that is something else now."""
    if record is None or sae.failure or not record.details.get("judge"):
        return []
    latents, collection = read_latents(folder, sae.id, sae.collected_by), folder.collection(sae.id)
    if latents is None or collection is None:
        return []  # none are asked for now
    return lineage.changed_since(record, lineage.hashes(collection, latents), latents)


def _mark(folder: RunFolder, record: Record, changed: Sequence[str]) -> None:
    """Have a record say that what it was made from is gone."""
    if (remark := lineage.lost(changed)) not in record.remarks:
        log.warning("%s of %s: %s", record.task, record.sae.id, remark)
        path = folder.record_path(record.sae.id, record.task)
        write_record(path, record.model_copy(update={"remarks": [*record.remarks, remark]}))


async def _judge(
    client: Client, judges: Judges, saes: Sequence[InterpretedSAE], records: LatentRecords, progress: Progress
) -> None:
    """Have the latents judged, one SAE after the other."""
    latents = (latent for sae in saes if not sae.failure for latent in _latents(records.folder, sae))
    takes = forecast(judges, map(examples_of, latents), client.is_kept)
    progress.say(f"judge {judges.judge.model}: {takes.describe(client.spending)}; less what is cached")
    nothing = {"judge": records.settings, "failures": {}}
    try:
        for sae in saes:
            if sae.failure:
                records.write(sae, (), nothing)
                continue
            try:
                await _judge_one(client, judges, sae, records, progress)
            except EndpointUnusable as error:
                records.write(sae, (), nothing, failure=f"judge: {error}")
    finally:
        await client.close()


async def _judge_one(
    client: Client, judges: Judges, sae: InterpretedSAE, records: LatentRecords, progress: Progress
) -> None:
    folder, tally = records.folder, Tally()
    waiting = (judge_latent(client, judges, latent, tally) for latent in _latents(folder, sae))
    under_way = [asyncio.ensure_future(one) for one in waiting]
    done: list[LatentFile] = []
    try:
        for finished in progress.track(f"judge {sae.id}", asyncio.as_completed(under_way), len(under_way)):
            latent = (await finished) | {"judge": records.settings}
            write_sealed(folder.latents_path(sae.id) / f"{latent['latent']}.json", latent)
            done.append(latent)
    finally:
        for one in under_way:
            one.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
    done.sort(key=lambda latent: int(latent["latent"]))
    collection = folder.collection(sae.id)
    assert collection is not None, "latents are judged after they were collected"
    facts = {
        "judge": records.settings,
        "interpretation": {key: collection[key] for key in ("tokens", "documents", "fingerprint", "n_eligible")},
        "cost": cost_of(tally, client.spending),
        "made_from": lineage.hashes(collection, [as_sealed(latent) for latent in done]),
    }
    records.write(sae, done, facts)


def _latents(folder: RunFolder, sae: InterpretedSAE) -> list[LatentFile]:
    latents = read_latents(folder, sae.id, sae.collected_by)
    assert latents is not None, "latents are judged after they were collected"
    return latents
