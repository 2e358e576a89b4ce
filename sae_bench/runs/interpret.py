"""The interpretability stage: collect what is missing, have it judged, write the records.

It comes after the evaluation and speaks with it through the run's folder alone. Latents are collected once and serve
every judge; a record is made again when it was made by another judge, other prompts or scorers, or when answers are
missing that another attempt may get. Without a judge a record says so.
"""

import asyncio
from collections.abc import Mapping, Sequence

from sae_bench.autointerp.budget import Tally
from sae_bench.autointerp.client import TRANSIENT, Client, EndpointUnusable
from sae_bench.autointerp.examples import EXCERPT_TOKENS, MIN_FIRED
from sae_bench.autointerp.explainer import cost_of, estimate, judge_latent
from sae_bench.autointerp.judges import (
    COLLECTION_VERSION,
    Judges,
    judge_settings,
    judges_of,
    scorers_of,
    spending_of,
)
from sae_bench.autointerp.latents import LatentFile, read_latents, write_latents
from sae_bench.autointerp.random_baseline import LABEL, RandomSAE, random_baselines
from sae_bench.autointerp.sample import Subject, collect, collection_bytes
from sae_bench.evaluation.task import LatentTask
from sae_bench.lm.contexts import site_means
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.records.files import write_sealed
from sae_bench.records.names import cache_folder
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.config import RunConfig
from sae_bench.runs.import_saes import Plan
from sae_bench.runs.latent_records import InterpretedSAE, LatentRecords
from sae_bench.runs.records import is_missing, provenance_of
from sae_bench.runs.sources import interpretation_stream
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.save import description_of, load_sae


def interpret_saes(
    lm: LanguageModel,
    config: RunConfig,
    plans: Sequence[Plan],
    tasks: Mapping[str, type[LatentTask]],
    held_out: TokenStream,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Write the missing records of tasks about latents, and the latents' files if they are asked for."""
    if not tasks:
        return
    saes = _interpreted_saes(lm, config, plans, folder)
    if config.collects:
        without = [sae for sae in saes if not sae.failed and read_latents(folder, sae.id, sae.collected_by) is None]
        if without:
            _collect(lm, config, without, folder, progress)
    judges = judges_of(config)
    settings = judge_settings(config, judges, config.interp_tokens_wanted)

    def is_due(sae: InterpretedSAE, task: str) -> bool:
        record = folder.record(sae.id, task)
        if record is None or is_missing(record, task, sae.description, config.hash, lm):
            return True
        if sae.failed or settings is None:  # what a judge said stands without one
            return False
        details = record.details
        return details["judge"] != settings or any(details["failures"].get(kind) for kind in TRANSIENT)

    due = [sae for sae in saes if any(is_due(sae, task) for task in tasks)]
    if not due:
        return
    if not held_out.n_delivered:
        held_out.read()  # for its fingerprint
    records = LatentRecords(folder, tasks, scorers_of(config), settings, lambda: provenance_of(lm, config, held_out))
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


def _interpreted_saes(
    lm: LanguageModel, config: RunConfig, plans: Sequence[Plan], folder: RunFolder
) -> list[InterpretedSAE]:
    """The run's SAEs, and the random ones beside them if they are asked for."""
    shared = {
        "version": COLLECTION_VERSION,
        "config_hash": config.hash,
        "model_sha256": lm.weight_hash(),
        "n_latents": config.latents_wanted,
        "interp_tokens": config.interp_tokens_wanted,
        "hard_negatives": config.hard_negatives,
        "excerpt_tokens": EXCERPT_TOKENS,
        "min_fired": MIN_FIRED,
    }
    described = [(description_of(folder.sae_path(plan.id)), plan.config, plan.site) for plan in plans]
    if config.chance and config.collects:
        described += random_baselines((plan.config, plan.site) for plan in plans)
    return [InterpretedSAE(d, c, site, shared | {"weights_sha256": d.weights_sha256}) for d, c, site in described]


def _collect(
    lm: LanguageModel, config: RunConfig, saes: Sequence[InterpretedSAE], folder: RunFolder, progress: Progress
) -> None:
    """Collect the latents of some SAEs."""
    stream, n_latents = interpretation_stream(lm, config), config.latents_wanted
    takes = collection_bytes(n_latents, [sae.config.d_sae for sae in saes], stream.n_tokens, stream.context_size)
    progress.say(
        f"collecting {n_latents} latents of {len(saes)} SAEs from {stream.n_tokens:,} held-out tokens, in about "
        f"{takes / 1e6:,.0f} MB"
    )
    random = [sae for sae in saes if sae.description.label == LABEL]
    sites = list(dict.fromkeys(sae.site for sae in random))
    means = site_means(lm, stream, sites, 1, progress) if sites else {}

    def loaded(sae: InterpretedSAE) -> SparseAutoencoder:
        if sae in random:
            return RandomSAE(sae.config).centre(means[sae.site].float().cpu()).to(lm.device)
        return load_sae(folder.sae_path(sae.id), lm.device)

    subjects = [Subject(sae.id, loaded(sae), sae.site) for sae in saes]
    found = collect(lm, stream, subjects, n_latents, progress, hard=config.hard_negatives)
    for sae, collection in zip(saes, found, strict=True):
        write_latents(folder, lm, collection, sae.collected_by)


async def _judge(
    client: Client, judges: Judges, saes: Sequence[InterpretedSAE], records: LatentRecords, progress: Progress
) -> None:
    """Have the latents judged, one SAE after the other."""
    latents = (latent for sae in saes if not sae.failed for latent in _latents(records.folder, sae))
    progress.say(estimate(client, judges, latents))
    nothing = {"judge": records.settings, "failures": {}}
    try:
        for sae in saes:
            if sae.failed:
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
    }
    records.write(sae, done, facts)


def _latents(folder: RunFolder, sae: InterpretedSAE) -> list[LatentFile]:
    latents = read_latents(folder, sae.id, sae.collected_by)
    assert latents is not None, "latents are judged after they were collected"
    return latents
