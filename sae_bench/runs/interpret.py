"""The interpretability stage: collect what is missing, have it judged, write the records.

It comes after the evaluation and speaks with it through the run's folder alone. Latents are collected once and serve
every judge; a record is made again when it was made by another judge, other prompts or scorers, or when answers are
missing that another attempt may get. Without a judge a record says so.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae_bench.autointerp import examples as excerpts
from sae_bench.autointerp.budget import Meter, Usage
from sae_bench.autointerp.client import TRANSIENT, Judge, JudgeUnusable, quiet_client
from sae_bench.autointerp.explainer import Tally, ask_about, expected_calls
from sae_bench.autointerp.judges import COLLECTION_VERSION, HOW, Panel, judge_settings, meter_of, panel_of
from sae_bench.autointerp.latents import Latent, read_latents, write_latents
from sae_bench.autointerp.random_baseline import RandomSAE, chance_plans, describe_chance
from sae_bench.autointerp.sample import Subject, collect, collection_bytes
from sae_bench.lm.contexts import site_means
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.records.files import write_sealed
from sae_bench.records.names import cache_folder
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.config import RunConfig
from sae_bench.runs.import_saes import Plan
from sae_bench.runs.latent_records import LatentRecords, Member
from sae_bench.runs.records import is_missing
from sae_bench.runs.sources import interpretation_stream
from sae_bench.saes.save import description_of, load_sae


def interpret_saes(
    lm: LanguageModel,
    config: RunConfig,
    plans: Sequence[Plan],
    tasks: Sequence[str],
    held_out: TokenStream,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Write the missing records of tasks that need latents, and the latents' files if they are asked for."""
    if not tasks:
        return
    members = _members(lm, config, plans, folder)
    panel = panel_of(config)
    if config.collects:
        _collect(lm, config, members, folder, progress)
    settings = judge_settings(config, panel, config.interp_tokens_wanted)
    missing = [
        member
        for member in members
        if any(_is_missing(folder.record(member.id, task), task, member, config, lm, settings) for task in tasks)
    ]
    if not missing:
        return
    if not held_out.n_delivered:
        held_out.read()  # for its fingerprint
    records = LatentRecords(lm, config, tasks, folder, held_out, settings)
    if panel is None:
        for member in missing:
            records.write(member, (), {"judge": None, "caption": HOW})
    else:
        asyncio.run(_judge(config, panel, missing, folder, progress, records))


def _members(lm: LanguageModel, config: RunConfig, plans: Sequence[Plan], folder: RunFolder) -> list[Member]:
    shared = {
        "version": COLLECTION_VERSION,
        "config_hash": config.hash,
        "model_sha256": lm.weight_hash(),
        "n_latents": config.latents_wanted,
        "interp_tokens": config.interp_tokens_wanted,
        "hard_negatives": config.hard_negatives,
        "excerpt_tokens": excerpts.EXCERPT_TOKENS,
        "min_fired": excerpts.MIN_FIRED,
    }
    described = [(description_of(folder.sae_path(plan.id)), plan.config, plan.site) for plan in plans]
    if config.chance and config.collects:
        random = chance_plans((plan.config, plan.site) for plan in plans)
        described += [(describe_chance(name, *shape), *shape) for name, shape in random.items()]
    return [Member(d, c, site, shared | {"weights_sha256": d["weights_sha256"]}) for d, c, site in described]


def _is_missing(
    record: Mapping[str, Any] | None,
    task: str,
    member: Member,
    config: RunConfig,
    lm: LanguageModel,
    settings: Mapping[str, Any] | None,
) -> bool:
    """A record made by a judge stands where none is asked for now."""
    if record is None or is_missing(record, task, member.description, config, lm):
        return True
    if settings is None or member.failed:
        return False
    details = record["details"]
    return details["judge"] != settings or any(details["failures"].get(kind) for kind in TRANSIENT)


def _collect(
    lm: LanguageModel, config: RunConfig, members: Sequence[Member], folder: RunFolder, progress: Progress
) -> None:
    """Collect the latents of those SAEs that have none by these settings."""
    missing = [m for m in members if not m.failed and read_latents(folder, m.id, m.settings) is None]
    if not missing:
        return
    stream = interpretation_stream(lm, config)
    takes = collection_bytes(
        config.latents_wanted, [m.config.d_sae for m in missing], config.interp_tokens_wanted, config.context_size
    )
    progress.say(
        f"collecting {config.latents_wanted} latents of {len(missing)} SAEs from {config.interp_tokens_wanted:,} "
        f"held-out tokens, in about {takes / 1e6:,.0f} MB"
    )
    random_sites = list(dict.fromkeys(m.site for m in missing if m.description["arch"] == RandomSAE.name))
    means = site_means(lm, stream, random_sites, 1, progress) if random_sites else {}
    subjects = [
        Subject(
            m.id,
            RandomSAE(m.config).centre(means[m.site].float().cpu()).to(lm.device)
            if m.description["arch"] == RandomSAE.name
            else load_sae(folder.sae_path(m.id), lm.device),
            m.site,
        )
        for m in missing
    ]
    found = collect(lm, stream, subjects, config.latents_wanted, progress, hard=config.hard_negatives)
    for member, subject, collection in zip(missing, subjects, found, strict=True):
        write_latents(folder, lm, subject, collection, stream, member.settings)


async def _judge(
    config: RunConfig,
    panel: Panel,
    members: Sequence[Member],
    folder: RunFolder,
    progress: Progress,
    records: "LatentRecords",
) -> None:
    """Have the members' latents judged, one SAE after the other."""
    meter = meter_of(config, panel)
    judge = Judge(cache_folder() / "judge", meter, concurrency=config.judge_concurrency, timeout=config.judge_timeout)
    healthy = [member for member in members if not member.failed]
    progress.say(_estimate(judge, panel, (folder_latents(folder, member) for member in healthy)))
    try:
        with quiet_client():
            for member in members:
                if member.failed:
                    records.write(member, (), {"judge": records.settings, "failures": {}})
                    continue
                try:
                    await _judge_one(judge, panel, member, folder, progress, records)
                except JudgeUnusable as error:
                    records.write(member, (), {"judge": records.settings, "failures": {}}, failure=f"judge: {error}")
    finally:
        await judge.close()


async def _judge_one(
    judge: Judge, panel: Panel, member: Member, folder: RunFolder, progress: Progress, records: "LatentRecords"
) -> None:
    tally = Tally({})
    asking = [
        asyncio.ensure_future(ask_about(judge, panel, latent, tally)) for latent in folder_latents(folder, member)
    ]
    done: list[Latent] = []
    try:
        for one in progress.track(f"judge {member.id}", asyncio.as_completed(asking), len(asking)):
            latent = (await one) | {"judge": records.settings}
            write_sealed(folder.latents_path(member.id) / f"{latent['latent']}.json", latent)
            done.append(latent)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    done.sort(key=lambda latent: int(latent["latent"]))
    collection = folder.collection(member.id)
    assert collection is not None, "latents are judged after they were collected"
    facts = {
        "judge": records.settings,
        "interpretation": {key: collection[key] for key in ("tokens", "documents", "fingerprint", "n_eligible")},
        "cost": cost_of(tally, judge.meter),
    }
    records.write(member, done, facts)


def folder_latents(folder: RunFolder, member: Member) -> list[Latent]:
    latents = read_latents(folder, member.id, member.settings)
    assert latents is not None, "latents are judged after they were collected"
    return latents


def cost_of(tally: Tally, meter: Meter) -> dict[str, Any]:
    """Tokens and dollars behind a record: of all its answers, whenever they were paid for."""
    total = sum(tally.by_model.values(), Usage())
    dollars = [meter.dollars(model, usage) for model, usage in tally.by_model.items()]
    known = [value for value in dollars if value is not None]
    return {
        "calls": tally.n_calls,
        "from_cache": tally.n_cached,
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "dollars": sum(known) if len(known) == len(dollars) else None,
    }


def _estimate(judge: Judge, panel: Panel, saes: Iterable[list[Latent]]) -> str:
    """What the judge is expected to cost, before its first call."""
    usage: dict[str, Usage] = {}
    n_calls = n_cached = 0
    for latents in saes:
        for latent in latents:
            for call in expected_calls(panel, latent):
                n_calls += 1
                if judge.is_kept(call):
                    n_cached += 1
                else:
                    usage[call.endpoint.model] = usage.get(call.endpoint.model, Usage()) + call.most
    total = sum(usage.values(), Usage())
    dollars = [judge.meter.dollars(model, of_model) for model, of_model in usage.items()]
    price = f"${sum(d or 0 for d in dollars):.2f}" if None not in dollars else "a price that nobody gave"
    return (
        f"judge {panel.scorer.model}: {n_calls:,} calls, at most about {total.prompt_tokens:,} tokens to read and "
        f"{total.completion_tokens:,} to write, {price}; less what is cached"
    )
