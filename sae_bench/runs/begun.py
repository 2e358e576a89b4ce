"""What a run's folder says of how the run was begun, and whether all that decides its numbers is still so.

A run goes on, or grows, with the language model, the corpus, the plugins and the recipes that it was begun with, to the
byte; with other library versions or another number of threads it goes on with a word.
"""

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_bench.activations_cache.sizes import in_words
from sae_bench.errors import UserError
from sae_bench.lm.fingerprint import differences
from sae_bench.records.redact import redact_json
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.config import RunConfig
from sae_bench.runs.deciding import ASKED, KEPT
from sae_bench.runs.home import begun_in, plugin_hashes
from sae_bench.runs.provenance import changed_environment
from sae_bench.runs.train import Leg, Order
from sae_bench.runs.workbench import PlannedSAE, RunOutline
from sae_bench.saes.kernels import Crossovers
from sae_bench.saes.save import description_of

log = logging.getLogger(__name__)

FORMAT = 2
"""Of run.json. Without a number: from when every setting, of whatever kind, was one identity."""

REMEDY = "choose another --out, or --overwrite the run"


def begin(folder: RunFolder, config: RunConfig) -> tuple[list[Leg], dict[str, Crossovers]]:
    """See that the folder holds this run or none, and return the legs that it extends, and the kernels it began with.

    Raises:
        UserError: a plugin that the run was begun with has another content now.
    """
    manifest = folder.manifest()
    if manifest is None:
        return [], {}
    for name, files in plugin_hashes(config, manifest["plugins"]).items():
        was = manifest["plugins"].get(name, files)
        if changed := [file for file in {**was, **files} if was.get(file) != files.get(file)]:
            what = f"--plugin {name}" + ("" if changed[0] == Path(name).name else f" reads {changed[0]}, which")
            raise UserError(
                f"{what} has changed since the run in {folder.path} was begun: bring the old file back, {REMEDY}"
            )
    earlier = [Leg(**leg) for leg in manifest["earlier"]]
    if manifest["training_hash"] != config.training_hash:  # --extend-tokens, or it would have been refused
        earlier.append(Leg(manifest["config"]["tokens"], manifest["training_hash"]))
    return earlier, {shape: Crossovers(**at) for shape, at in manifest["kernels"].items()}


def check_unchanged(folder: RunFolder, config: RunConfig, outline: RunOutline, legs: Sequence[Leg]) -> None:
    """See that model, corpus and recipes are those that the run was begun with, and say what of the machine is not.

    Raises:
        UserError: one is not, or an SAE is added to a run that was trained further.
    """
    manifest = folder.manifest()
    if manifest is None:  # a new run, or one whose run.json is lost
        _check_recipes(folder, _recipes_of_saved(folder, outline.saes), outline.saes)
        return
    other = other_environment(folder, outline)
    if changed := differences(manifest["model"], outline.model):
        changed += [f"and elsewhere: {other}"] if other else []
        raise UserError(
            f"the language model, --model {config.model}, is not the one that the run in {folder.path} was begun with "
            f"({'; '.join(changed)}): bring it back, with --revision if it is on the hub, {REMEDY}"
        )
    if manifest["dataset_sha256"] != outline.dataset_sha256:
        raise UserError(
            f"the corpus does not give the tokens that it gave before: --dataset {config.dataset} has "
            f"changed since the run in {folder.path} was begun: bring the old files back, {REMEDY}"
        )
    _check_recipes(folder, manifest["recipes"], outline.saes)
    new = [sae.id for sae in outline.saes if sae.id not in manifest["saes"] and sae.description.origin is None]
    if new and legs:
        raise UserError(
            f"the run in {folder.path} was trained further with --extend-tokens, and {new[0]} would be trained in one "
            "go: choose another --out for what is added"
        )
    if other:
        log.warning("the run in %s was begun elsewhere (%s): what is made now may differ in bits", folder.path, other)


def other_environment(folder: RunFolder, outline: RunOutline) -> str:
    """In what library versions, device and threads are others than those that the run was begun with; empty if none."""
    manifest = folder.manifest()
    return changed_environment(manifest["environment"], outline.environment) if manifest else ""


def _check_recipes(folder: RunFolder, recipes: Mapping[str, Mapping[str, Any]], saes: Sequence[PlannedSAE]) -> None:
    """See that SAEs have the recipes that they were begun with: a preset may have changed since, or what was tuned."""
    for sae in saes:
        if sae.description.origin is not None:
            continue
        now = sae.description.whole_recipe
        if changed := differences(recipes.get(sae.id, now), now):
            raise UserError(
                f"the run in {folder.path} was begun with another recipe of {sae.id} ({'; '.join(changed)}): {REMEDY}"
            )


def _recipes_of_saved(folder: RunFolder, saes: Sequence[PlannedSAE]) -> dict[str, dict[str, Any]]:
    """The recipes of the SAEs that are there; what is damaged is not, and is trained again."""
    found = {}
    for sae in saes:
        with suppress(UserError):
            if (path := folder.sae_path(sae.id)).exists():
                found[sae.id] = description_of(path).whole_recipe
    return found


def check_one_text(folder: RunFolder, saes: Sequence[PlannedSAE], dataset: str) -> None:
    """See that all SAEs were trained on the same tokens: a data set of the hub may change between two commands.

    Raises:
        UserError: some were not.
    """
    texts: dict[str, str] = {}
    for sae in saes:
        text = sae.description.training.fingerprint
        if text and sae.description.origin is None and sae.description.training.failure is None:
            texts.setdefault(text, sae.id)
    if len(texts) > 1:
        first, *_, other = texts.values()
        raise UserError(
            f"--dataset {dataset} gave {other} other tokens than {first} was trained on: it has changed since the run "
            f"in {folder.path} was begun. Delete {folder.sae_path(other)}, and train it in another --out"
        )


def check_disk(folder: RunFolder, outline: RunOutline, config: RunConfig) -> None:
    """See that there is room for what is to be trained.

    Raises:
        UserError: there is not.
    """
    n_bytes = sum(n for name, n in outline.disk_bytes.items() if not folder.has_sae(name, config.training_hash))
    own = sum(file.stat().st_size for name in ("checkpoints", "saes") for file in (folder.path / name).rglob("*.*"))
    out = folder.path.absolute()
    free = own + shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists())).free
    if free < n_bytes:
        raise UserError(
            f"--out {folder.path} needs about {in_words(n_bytes, up=True)} for SAEs and checkpoints, and "
            f"{in_words(free)} are free: make room, or choose another --out"
        )


def write_manifest(folder: RunFolder, order: Order, outline: RunOutline, *, train_only: bool) -> None:
    """Say what the run is, before it starts; of one that goes on, what there is now."""
    config, before = order.config, folder.manifest() or {}
    mine = redact_json(config.asked | ({"tasks": None} if train_only else {}))
    asked = before.get("asked", [])
    first = {name: of for name, of in before.get("config", config.identity).items() if name in ASKED}
    recipes = {sae.id: sae.description.whole_recipe for sae in outline.saes}
    manifest = {
        "format": FORMAT,
        "config": {name: of for name, of in config.identity.items() if name not in ASKED} | first,
        "config_hash": config.evaluation_hash,
        "training_hash": config.training_hash,
        "asked": asked if mine in asked else [*asked, mine],
        "kept": config.as_called(config.model_dump(mode="json", include={*KEPT})),
        "earlier": [dataclasses.asdict(leg) for leg in order.earlier],
        "plugins": before.get("plugins", {}) | plugin_hashes(config, before.get("plugins", {})),
        "saes": list(dict.fromkeys([*before.get("saes", ()), *recipes])),
        "recipes": before.get("recipes", {}) | recipes,
        "kernels": {shape: at._asdict() for shape, at in order.kernels.items()},
        "model": dict(outline.model),
        "dataset_sha256": outline.dataset_sha256,
        "environment": before.get("environment", outline.environment),
    }
    manifest |= {name: of for name, of in before.items() if name == "begun_in"} if before else begun_in(config, folder)
    if manifest != before:
        folder.write_manifest(manifest)
