"""The main job: load the language model, train what is missing, evaluate what is missing, draw the board.

Every stage reads and writes the run's folder, so the same command does only what is missing: finished SAEs are loaded
instead of trained, existing records are kept.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sae_bench.autointerp.judges import check_judge
from sae_bench.errors import UserError
from sae_bench.evaluation.loop import Candidate, evaluate
from sae_bench.evaluation.task import Task, latent_tasks, token_tasks
from sae_bench.leaderboard import captions, tables
from sae_bench.leaderboard.bootstrap import MIN_DOCUMENTS
from sae_bench.leaderboard.load import check_comparable
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.records.files import sha256
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Record, write_record
from sae_bench.registry import TASKS
from sae_bench.runs.config import RunConfig
from sae_bench.runs.costs import LMWork
from sae_bench.runs.import_saes import Plan, import_saes, open_imports, plan_imports
from sae_bench.runs.interpret import interpret_saes
from sae_bench.runs.plan import check_names, plan_saes
from sae_bench.runs.rates import remember_parts, remember_rate
from sae_bench.runs.records import is_missing, make_record, provenance_of, siblings_of
from sae_bench.runs.sources import load_model, token_stream
from sae_bench.runs.train import Leg, TrainStage
from sae_bench.saes.save import description_of, load_sae
from sae_bench.training.logging import log_sink


def run(config: RunConfig, folder: RunFolder, progress: Progress, log_to: str | None = None) -> Sequence[Record]:
    """Do the main job and return the run's records; `log_to` is where the training log is shown, too.

    Raises:
        UserError: something asked for cannot be done; what was finished before stays.
    """
    with log_sink(log_to, folder.path) as sink:
        check_names(config)
        opened = open_imports(config.saes)
        check_judge(config)
        earlier = begin(folder, config)
        tasks = config.tasks or tuple(TASKS)
        lm = load_model(config, progress)
        plans = plan_saes(config, lm)
        check_recipes(folder, plans)
        imports = plan_imports(lm, opened, config)
        everything: list[Plan] = [*plans, *imports]
        held_out = token_stream(lm, config, "eval", config.n_held_out)
        to_import = [plan for plan in imports if not folder.has_sae(plan.id, config.hash)]
        for plan in to_import:
            plan.build()  # a number that is not finite shows before the first file is written, too
        to_train = [plan for plan in plans if not folder.has_sae(plan.id, config.hash)]
        if to_train or to_import:
            # What can be wrong with data or activations shows before the first file is written.
            progress.say(f"reading {config.dataset}")
            held_out.read()
            progress.say(
                f"evaluating on {held_out.n_delivered:,} held-out tokens of {held_out.n_documents:,} documents"
            )
            if held_out.n_documents < MIN_DOCUMENTS:
                progress.say(captions.few_documents(held_out.n_documents))
        if to_train:
            stage = TrainStage(lm, config, to_train, folder, progress, earlier)
            write_manifest(folder, config, everything, earlier)
            stage.run(sink)
            del stage  # and its buffer
        elif folder.manifest() is None:
            write_manifest(folder, config, everything, earlier)
        import_saes(lm, config, to_import, folder)
        evaluate_saes(lm, config, everything, token_tasks(tasks), held_out, folder, progress)
        interpret_saes(lm, config, everything, latent_tasks(tasks), held_out, folder, progress)
        records = folder.records()
        check_comparable(records)
        tables.write_board(folder.path, records)
        return records


def begin(folder: RunFolder, config: RunConfig) -> list[Leg]:
    """See that the folder holds this run or none, and return the legs that it extends.

    Raises:
        UserError: a plugin that the run was begun with has another content now.
    """
    manifest = folder.manifest()
    if manifest is None:
        return []
    for name, digest in plugin_hashes(config.plugins).items():
        if manifest["plugins"].get(name, digest) != digest:
            raise UserError(
                f"--plugin {name} has changed since the run in {folder.path} was begun: bring the old file back, "
                "choose another --out, or --overwrite the run"
            )
    earlier = [Leg(**leg) for leg in manifest["earlier"]]
    if manifest["config_hash"] != config.hash:  # --extend-tokens, or `check` would have refused
        earlier.append(Leg(manifest["config"]["tokens"], manifest["config_hash"]))
    return earlier


def check_recipes(folder: RunFolder, plans: Sequence[Plan]) -> None:
    """See that the run was begun with the recipes that its architectures have now: a preset may have changed since.

    Raises:
        UserError: it was not.
    """
    before = (folder.manifest() or {}).get("recipes", {})
    for plan in plans:
        now = recipe_of(plan)
        if (was := before.get(plan.id, now)) != now:
            changed = "; ".join(
                f"{key}: {was.get(key)!r} -> {now.get(key)!r}" for key in now if was.get(key) != now[key]
            )
            raise UserError(
                f"the run in {folder.path} was begun with another recipe of {plan.id} ({changed}): choose another "
                "--out, or --overwrite the run"
            )


def recipe_of(plan: Plan) -> dict[str, Any]:
    """What an SAE learns from besides a run's settings: recipe, options, and the version of its architecture."""
    about = plan.describe()
    return {**(about.recipe or {}), **about.options, "arch_version": about.arch_version}


def plugin_hashes(plugins: Sequence[str]) -> dict[str, str]:
    """SHA-256 of every plugin file."""
    return {name: sha256(Path(name)) for name in plugins}


def evaluate_saes(
    lm: LanguageModel,
    config: RunConfig,
    plans: Sequence[Plan],
    tasks: Mapping[str, type[Task]],
    stream: TokenStream,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Write the records that are missing: one pass over the held-out tokens for all of them."""
    candidates, healthy = [], []
    descriptions = {plan.id: description_of(folder.sae_path(plan.id)) for plan in plans}
    loaded = functools.cache(lambda id: load_sae(folder.sae_path(id), lm.device))
    for plan in plans:
        description = descriptions[plan.id]
        siblings = siblings_of(description, list(descriptions.values()))
        compared = {name: siblings if task.needs_siblings else [] for name, task in tasks.items()}
        missing = {
            name: task()
            for name, task in tasks.items()
            if is_missing(folder.record(plan.id, name), name, description, config.hash, lm, compared[name])
        }
        if not missing:
            continue
        if description.training.failure:
            with torch.device("meta"):  # nobody will ask for its weights
                candidate = Candidate(plan.build(), plan.site, missing)
        else:
            others = siblings if any(task.needs_siblings for task in missing.values()) else []
            candidate = Candidate(loaded(plan.id), plan.site, missing, [loaded(other.id) for other in others])
            healthy.append(candidate)
        candidates.append((candidate, description, compared))
    if not candidates:
        return
    start = time.monotonic()
    if healthy:
        evaluate(lm, stream, healthy, progress)
        remember_rate("evaluation", lm, config, [about for _, about, _ in candidates], stream.n_delivered, start)
        work = LMWork(lm, config.context_size)
        through = stream.n_delivered * work.evaluation([candidate.site for candidate in healthy]) / work.layer
        remember_parts(lm, config, {"evaluation": (through, time.monotonic() - start)})
    else:
        stream.read()  # for its counts and its fingerprint
    seconds = time.monotonic() - start
    provenance = provenance_of(lm, config, stream).model_copy(update={"evaluation_seconds": round(seconds, 3)})
    for candidate, description, compared in candidates:
        for name, task in candidate.tasks.items():
            result, failure = candidate.results.get(name), candidate.failures.get(name)
            record = make_record(task, result, failure, description, provenance, compared[name])
            write_record(folder.record_path(description.id, name), record)


def write_manifest(folder: RunFolder, config: RunConfig, plans: Sequence[Plan], earlier: Sequence[Leg]) -> None:
    """Say what the run is, before it starts."""
    folder.write_manifest(
        {
            "config": config.identity,
            "config_hash": config.hash,
            "earlier": [dataclasses.asdict(leg) for leg in earlier],
            "plugins": plugin_hashes(config.plugins),
            "saes": [plan.id for plan in plans],
            "recipes": {plan.id: recipe_of(plan) for plan in plans},
        }
    )
