"""The main job: load the language model, train what is missing, evaluate what is missing, draw the board.

Every stage reads and writes the run's folder, so the same command does only what is missing: finished SAEs are loaded
instead of trained, existing records are kept.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sae_bench.autointerp.judges import check_judge
from sae_bench.errors import UserError
from sae_bench.evaluation.loop import Candidate, evaluate
from sae_bench.evaluation.task import Task, latent_tasks, token_tasks
from sae_bench.leaderboard import tables
from sae_bench.leaderboard.bootstrap import MIN_DOCUMENTS
from sae_bench.leaderboard.load import check_comparable
from sae_bench.lm.model import LanguageModel, load_language_model
from sae_bench.lm.sites import Site, find_site
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.records.files import sha256
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Record, write_record
from sae_bench.registry import TASKS
from sae_bench.runs.config import RunConfig
from sae_bench.runs.import_saes import Plan, import_saes, open_imports, plan_imports
from sae_bench.runs.interpret import interpret_saes
from sae_bench.runs.plan import check_names, plan_saes
from sae_bench.runs.records import is_missing, make_record, provenance_of
from sae_bench.runs.train import Leg, TrainStage, token_stream
from sae_bench.saes.save import description_of, load_sae
from sae_bench.training.logging import LogSink

log = logging.getLogger(__name__)


def run(
    config: RunConfig, folder: RunFolder, progress: Progress, sink: LogSink = lambda sae_id, row: None
) -> Sequence[Record]:
    """Do the main job and return the run's records.

    Raises:
        UserError: something asked for cannot be done; what was finished before stays.
    """
    check_names(config)
    opened = open_imports(config)
    check_judge(config)
    earlier = begin(folder, config)
    tasks = config.tasks or tuple(TASKS)
    device, dtype = choose_device(config)
    progress.say(f"loading {config.model} ({str(dtype).removeprefix('torch.')} on {device})")
    lm = load_language_model(
        config.model, device=device, dtype=dtype, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    plans = plan_saes(config, find_sites(lm, config))
    check_recipes(folder, plans)
    imports = plan_imports(lm, config, opened)
    everything: list[Plan] = [*plans, *imports]
    held_out = token_stream(lm, config, "eval", config.n_held_out)
    to_import = [plan for plan in imports if not folder.has_sae(plan.id, config.hash)]
    for plan in to_import:
        plan.build()  # a number that is not finite shows before the first file is written, too
    to_train = [plan for plan in plans if not folder.has_sae(plan.id, config.hash)]
    if to_train or to_import:
        # What can be wrong with data or activations shows before the first file is written and the first step is made.
        progress.say(f"reading {config.dataset}")
        held_out.read()
        progress.say(f"evaluating on {held_out.n_delivered:,} held-out tokens of {held_out.n_documents:,} documents")
        if held_out.n_documents < MIN_DOCUMENTS:
            log.warning(tables.few_documents(held_out.n_documents))
    if to_train:
        stage = TrainStage(lm, config, to_train, folder, progress, earlier)
        stage.start()
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
    for name, digest in plugin_hashes(config).items():
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
        was, now = before.get(plan.id), recipe_of(plan)
        if was is not None and was != now:
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


def plugin_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of every plugin file."""
    return {name: sha256(Path(name)) for name in config.plugins}


def choose_device(config: RunConfig) -> tuple[torch.device, torch.dtype]:
    """The device and the language model's dtype; "auto" is CUDA in bfloat16 where there is one, else CPU in float32.

    Raises:
        UserError: the device does not exist.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device "{name}": {str(error).splitlines()[0]}; try --device cpu') from None
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(config.dtype)
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)


def find_sites(lm: LanguageModel, config: RunConfig) -> list[Site]:
    """Every requested site, each once: a `path:` without {layer} is the same one for every layer."""
    sites = (
        find_site(lm.model, kind, layer) for layer in config.layers or (lm.n_layers // 2,) for kind in config.sites
    )
    return list(dict.fromkeys(sites))


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
    candidates, descriptions = [], []
    for plan in plans:
        description = description_of(folder.sae_path(plan.id))
        made = {name: folder.record(plan.id, name) for name in tasks}
        missing = [name for name in tasks if is_missing(made[name], name, description, config.hash, lm)]
        if missing and description.training.failure:
            with torch.device("meta"):  # nobody will ask for its weights
                sae = plan.build()
        elif missing:
            sae = load_sae(folder.sae_path(plan.id), lm.device)
        if missing:
            descriptions.append(description)
            candidates.append(Candidate(sae, plan.site, {name: tasks[name]() for name in missing}))
    if not candidates:
        return
    start = time.monotonic()
    healthy = [(c, d) for c, d in zip(candidates, descriptions, strict=True) if not d.training.failure]
    if healthy:
        evaluate(lm, stream, [candidate for candidate, _ in healthy], progress)
    else:
        stream.read()  # for its counts and its fingerprint
    seconds = time.monotonic() - start
    provenance = provenance_of(lm, config, stream).model_copy(update={"evaluation_seconds": round(seconds, 3)})
    for candidate, description in zip(candidates, descriptions, strict=True):
        for name, task in candidate.tasks.items():
            result, failure = candidate.results.get(name), candidate.failures.get(name)
            record = make_record(task, result, failure, description, provenance)
            write_record(folder.record_path(description.id, name), record)


def write_manifest(folder: RunFolder, config: RunConfig, plans: Sequence[Plan], earlier: Sequence[Leg]) -> None:
    """Say what the run is, before it starts."""
    folder.write_manifest(
        {
            "config": config.identity,
            "config_hash": config.hash,
            "earlier": [dataclasses.asdict(leg) for leg in earlier],
            "plugins": plugin_hashes(config),
            "saes": [plan.id for plan in plans],
            "recipes": {plan.id: recipe_of(plan) for plan in plans},
        }
    )
