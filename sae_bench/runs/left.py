"""What is left to do for each SAE of a run, as far as its files say."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum

from sae_bench.autointerp.latents import read_latents
from sae_bench.evaluation.task import OwnText, Task, latent_tasks, token_tasks
from sae_bench.lm.fingerprint import fingerprint
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import SAEDescription
from sae_bench.runs.collect import as_saved, interpreted, random_saes
from sae_bench.runs.config import RunConfig
from sae_bench.runs.import_saes import Plan
from sae_bench.runs.plan import tasks_of
from sae_bench.runs.records import is_missing, siblings_among
from sae_bench.runs.texts import without_record
from sae_bench.runs.workbench import PlannedSAE


class Left(StrEnum):
    """The first thing that is left to do for an SAE; judging comes after all of them."""

    TRAINING = "to train"
    EVALUATION = "to evaluate"
    TEXTS = "to evaluate on texts"
    LATENTS = "to collect latents"
    SEEDS = "to compare with other seeds"
    NOTHING = "finished"


def what_is_left(
    config: RunConfig, folder: RunFolder, plans: Sequence[Plan], texts: Mapping[str, OwnText], *, overwrite: bool
) -> dict[str, Left]:
    """The first thing that is left to do for each of a run's SAEs, by name, if the language model is still the run's.

    `texts` are those that the run's tasks bring. With `overwrite` the run that is there is deleted first. Without a
    manifest the language model is not known, so that every SAE counts as one to evaluate.
    """
    if overwrite or not folder.path.is_dir():
        return {plan.id: Left.TRAINING for plan in plans}
    manifest, tasks = folder.manifest(), tasks_of(config)
    if config.world is not None:  # where no text is, no latent is collected
        tasks = tuple(name for name in tasks if name not in latent_tasks(tasks))
    model = fingerprint(manifest["model"]) if manifest else ""
    saes = [PlannedSAE.of(plan) for plan in plans]
    left = left_to_do(folder, config, tasks, saes, model, texts)
    there = [as_saved(folder, sae) if left[sae.id] is not Left.TRAINING else sae for sae in saes]
    to_compare = left_to_compare(folder, config, tasks, {sae.id: sae.description for sae in there}, model)
    return {name: Left.SEEDS if first is Left.NOTHING and name in to_compare else first for name, first in left.items()}


def uncounted(config: RunConfig, texts: Collection[str], left: Iterable[Left]) -> str:
    """What a run is left with that no plan's times have in them, to stand behind them; "" if there is no such thing."""
    kinds = set(left) - {Left.NOTHING}
    in_cells = kinds - {Left.SEEDS}
    collects = config.collects and config.world is None and latent_tasks(tasks_of(config))
    seeds = kinds and among_seeds(tasks_of(config)) and len(config.seeds) > 1
    found = [
        *(texts if in_cells else []),
        *(["collecting latents"] if in_cells and collects else []),
        *(["comparisons among seeds"] if seeds else []),
    ]
    return f"; {' and '.join(found)} not counted" if found else ""


def left_to_do(
    folder: RunFolder,
    config: RunConfig,
    tasks: Sequence[str],
    saes: Sequence[PlannedSAE],
    model_fingerprint: str,
    texts: Mapping[str, OwnText],
) -> dict[str, Left]:
    """What cells have to do for each of a run's SAEs, by name, and for the random ones that belong to them.

    `texts` are those that the tasks bring. Other seeds are not looked at: `left_to_compare`.
    """
    random = random_saes(config, saes)
    return {sae.id: _left(folder, config, tasks, sae, random.get(sae.id), model_fingerprint, texts) for sae in saes}


def _left(
    folder: RunFolder,
    config: RunConfig,
    tasks: Sequence[str],
    sae: PlannedSAE,
    random: PlannedSAE | None,
    model_fingerprint: str,
    texts: Mapping[str, OwnText],
) -> Left:
    if not folder.has_sae(sae.id, config.training_hash):
        return Left.TRAINING
    sae = as_saved(folder, sae)
    if any(
        is_missing(folder.record(sae.id, task), task, sae.description, config.evaluation_hash, model_fingerprint)
        for task in of_one_sae(tasks)
    ):
        return Left.EVALUATION
    if without_record(folder, sae.description, config.evaluation_hash, model_fingerprint, texts):
        return Left.TEXTS
    if not latent_tasks(tasks) or not config.collects:
        return Left.NOTHING
    subjects = interpreted(config, [sae, *([random] if random else [])], model_fingerprint)
    wanted = [one for one in subjects if not one.failure]
    collected = all(read_latents(folder, one.id, one.collected_by) is not None for one in wanted)
    return Left.NOTHING if collected else Left.LATENTS


def left_to_compare(
    folder: RunFolder,
    config: RunConfig,
    tasks: Sequence[str],
    saes: Mapping[str, SAEDescription],
    model_fingerprint: str,
) -> set[str]:
    """Those of a run's SAEs, by name, of which a comparison with other seeds is missing."""
    siblings = siblings_among(saes.values())
    return {
        name
        for name, about in saes.items()
        for task in among_seeds(tasks)
        if is_missing(folder.record(name, task), task, about, config.evaluation_hash, model_fingerprint, siblings[name])
    }


def of_one_sae(tasks: Sequence[str]) -> dict[str, type[Task]]:
    """The tasks about tokens among these that look at one SAE alone."""
    return {name: task for name, task in token_tasks(tasks).items() if not task.needs_siblings}


def among_seeds(tasks: Sequence[str]) -> dict[str, type[Task]]:
    """Those that compare an SAE with those of other seeds."""
    return {name: task for name, task in token_tasks(tasks).items() if task.needs_siblings}
