"""The main job: load the language model, train what is missing, evaluate what is missing, draw the board.

Every stage reads and writes the run's folder, so the same command does only what is missing: finished SAEs are loaded
instead of trained, existing records are kept.
"""

import dataclasses
import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sae_bench import leaderboard
from sae_bench.activations import ActivationStream
from sae_bench.config import RunConfig
from sae_bench.corpus import EMBEDDED
from sae_bench.corpus import describe as describe_embedded
from sae_bench.crossover import dense_above
from sae_bench.data import TokenStream
from sae_bench.errors import UserError
from sae_bench.evaluate import Candidate, evaluate
from sae_bench.lm import LanguageModel, load_language_model
from sae_bench.log_sinks import LogSink
from sae_bench.plan import SAEPlan, check_names, plan_saes, training_bytes
from sae_bench.progress import Progress
from sae_bench.provenance import environment
from sae_bench.registry import TASKS
from sae_bench.sites import Site, find_site
from sae_bench.store import RunFolder, write_json
from sae_bench.train import Trainee, train
from sae_bench.weights import description_of, load_sae, save_sae

ORDER_SEED = 0
"""Documents come in one order for every run, so that runs on one corpus evaluate on the same tokens."""


def run(
    config: RunConfig, folder: RunFolder, progress: Progress, sink: LogSink = lambda sae_id, row: None
) -> Sequence[leaderboard.Record]:
    """Do the main job and return the run's records.

    Raises:
        UserError: something asked for cannot be done; what was finished before stays.
    """
    folder.open(config.identity)
    check_names(config)
    tasks = config.tasks or tuple(TASKS)
    device, dtype = choose_device(config)
    progress.say(f"loading {config.model} ({str(dtype).removeprefix('torch.')} on {device})")
    lm = load_language_model(
        config.model, device=device, dtype=dtype, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    plans = plan_saes(config, find_sites(lm, config))
    held_out = token_stream(lm, config, "eval", config.n_held_out)
    to_train = [plan for plan in plans if not folder.has_sae(plan.id)]
    if to_train:
        # What can be wrong with data or activations shows before the first file is written and the first step is made.
        progress.say(f"reading {config.dataset}")
        held_out.read()
        stream = start_stream(lm, config, to_train, progress)
        write_manifest(folder, config, plans)
        train_saes(lm, config, to_train, stream, folder, progress, sink)
        del stream  # and its buffer
    evaluate_saes(lm, config, plans, tasks, held_out, folder, progress)
    records = folder.records()
    leaderboard.check_comparable(records)
    leaderboard.write_board(folder.path, records)
    return records


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


def token_stream(lm: LanguageModel, config: RunConfig, split: str, n_tokens: int) -> TokenStream:
    """The run's training or evaluation tokens."""
    return TokenStream(
        config.dataset,
        lm.tokenizer,
        split=split,  # type: ignore[arg-type]
        context_size=config.context_size,
        n_tokens=n_tokens,
        order_seed=ORDER_SEED,
        column=config.text_column,
        max_context=lm.max_context,
    )


def start_stream(
    lm: LanguageModel, config: RunConfig, plans: Sequence[SAEPlan], progress: Progress
) -> ActivationStream:
    """The one stream of activations for some SAEs, its buffer filled."""
    stream = ActivationStream(
        lm,
        token_stream(lm, config, "train", config.tokens),
        list(dict.fromkeys(plan.site for plan in plans)),
        batch_size=config.batch_size,
        buffer_tokens=config.buffer_tokens,
        reuse=config.reuse,
        seeds=config.seeds,
        reserved_bytes=training_bytes(plans),
    )
    stream.start(progress)
    return stream


def train_saes(
    lm: LanguageModel,
    config: RunConfig,
    plans: Sequence[SAEPlan],
    stream: ActivationStream,
    folder: RunFolder,
    progress: Progress,
    sink: LogSink,
) -> None:
    """Train some SAEs on one stream and save them."""
    above = crossovers(config, plans, lm.device, progress)
    trainees = [
        Trainee(
            plan.id,
            plan.build(),
            plan.site,
            plan.config.seed,
            plan.recipe,
            kernels=config.kernels,
            compile=config.compile,
            dense_above=above.get((plan.config.d_in, plan.config.d_sae)),
        )
        for plan in plans
    ]
    train(trainees, stream, progress, sink)
    for plan, trainee in zip(plans, trainees, strict=True):
        description = plan.describe() | {
            "training": {
                "tokens_seen": stream.n_steps * stream.batch_size,
                "activations_captured": stream.n_captured,
                "n_steps": stream.n_steps,
                "input_scale": stream.scale[plan.site],
                "fingerprint": stream.tokens.fingerprint,
                "passes_over_corpus": stream.tokens.passes,
                "seconds": round(trainee.seconds, 3),
                "kernels": config.kernels,
                "dense_above": trainee.dense_above,
                "steps_skipped": trainee.books.n_skipped,
                "failure": trainee.failure,
            }
        }
        save_sae(folder.sae_path(plan.id), trainee.sae, description, sae_metadata(lm, config, plan.site), trainee.log)


def crossovers(
    config: RunConfig, plans: Sequence[SAEPlan], device: torch.device, progress: Progress
) -> dict[tuple[int, int], float]:
    """For each shape (d_in, d_sae), the density above which dense products are faster; empty unless it is asked for."""
    if config.kernels != "auto":
        return {}
    shapes = dict.fromkeys((plan.config.d_in, plan.config.d_sae) for plan in plans)
    found = {shape: dense_above(*shape, config.batch_size, device) for shape in shapes}
    for (d_in, d_sae), density in found.items():
        progress.say(f"kernels: dense products above {density:.0%} active pairs at {d_in} x {d_sae}")
    return found


def sae_metadata(lm: LanguageModel, config: RunConfig, site: Site) -> dict[str, Any]:
    """What other tools need to know to use an SAE; hook names are TransformerLens's."""
    hooks = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z"}
    return {
        "model_name": lm.name,
        "hook_name": f"blocks.{site.layer}.{hooks[site.kind]}" if site.kind in hooks else site.path,
        "module_path": site.path,
        "module_side": site.side,
        "prepend_bos": True,
        "context_size": config.context_size,
        "dataset_path": config.dataset,
    }


def evaluate_saes(
    lm: LanguageModel,
    config: RunConfig,
    plans: Sequence[SAEPlan],
    tasks: Sequence[str],
    stream: TokenStream,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Write the records that are missing: one pass over the held-out tokens for all of them."""
    missing = {plan.id: [name for name in tasks if not folder.record_path(plan.id, name).exists()] for plan in plans}
    todo = [plan for plan in plans if missing[plan.id]]
    if not todo:
        return
    candidates, descriptions = [], []
    for plan in todo:
        sae = load_sae(folder.sae_path(plan.id), lm.device)
        descriptions.append(description_of(folder.sae_path(plan.id)))
        candidates.append(Candidate(sae, plan.site, {name: TASKS[name]() for name in missing[plan.id]}))
    start = time.monotonic()
    healthy = [(c, d) for c, d in zip(candidates, descriptions, strict=True) if not d["training"]["failure"]]
    if healthy:
        evaluate(lm, stream, [candidate for candidate, _ in healthy], progress)
    seconds = time.monotonic() - start
    provenance = provenance_of(lm, config, stream) | {"evaluation_seconds": round(seconds, 3)}
    for candidate, description in zip(candidates, descriptions, strict=True):
        for name in candidate.tasks:
            record = make_record(candidate, name, description, provenance)
            write_json(folder.record_path(description["id"], name), record)


def make_record(
    candidate: Candidate, name: str, description: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """One (SAE, task): its values, or why there are none."""
    task, result = TASKS[name], candidate.results.get(name)
    failure = description["training"]["failure"]
    assert (result is None) == (failure is not None), "an SAE is evaluated unless its training failed"
    return {
        "task": name,
        "task_version": task.version,
        "failure": failure,
        "metrics": {metric.name: dataclasses.asdict(metric) for metric in task.metrics},
        "scores": {key: dataclasses.asdict(score) for key, score in result.scores.items()} if result else {},
        "by_document": result.by_document if result else {},
        "per_latent": result.per_latent if result else {},
        "details": result.details if result else {},
        "sae": dict(description),
        "provenance": dict(provenance),
    }


def provenance_of(lm: LanguageModel, config: RunConfig, stream: TokenStream) -> dict[str, Any]:
    """What every record of a run repeats."""
    return environment(lm.device) | {
        "model": lm.name,
        "model_revision": lm.revision,
        "model_sha256": lm.weight_hash(),
        "lm_dtype": str(lm.dtype).removeprefix("torch."),
        "sae_dtype": "float32",
        "dataset": config.dataset if config.dataset != EMBEDDED else describe_embedded(),
        "eval_fingerprint": stream.fingerprint,
        "eval_tokens": stream.n_delivered,
        "eval_documents": stream.n_documents,
        "preset": config.preset,
        "config": config.identity,
        "config_hash": config.hash,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_manifest(folder: RunFolder, config: RunConfig, plans: Sequence[SAEPlan]) -> None:
    """Say what the run is, before it starts."""
    folder.write_manifest({"config": config.identity, "config_hash": config.hash, "saes": [plan.id for plan in plans]})
