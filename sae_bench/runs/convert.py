"""`convert`: a run's SAEs as another architecture, and what that costs: each is measured before and after in one pass.

The results lie in a folder like a run's, without a run: `--sae FOLDER` takes it. `conversion.json` keeps the numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from sae_bench.errors import UserError
from sae_bench.evaluation.loop import Candidate, evaluate
from sae_bench.evaluation.task import Task, token_tasks
from sae_bench.formats import ours
from sae_bench.formats.export import saes_of
from sae_bench.lm.activations import ActivationModel, ContextStream
from sae_bench.lm.contexts import Contexts
from sae_bench.lm.sites import Site, site_of
from sae_bench.progress import Progress
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.records.names import file_name
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import SAEDescription
from sae_bench.runs.config import RunConfig
from sae_bench.runs.home import at_home
from sae_bench.runs.records import inapplicable
from sae_bench.runs.sources import load_model, token_stream
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.convert import check_conversion, convert, to_built_in

COSTS = {"l0": "reconstruction", "fve": "reconstruction", "delta_lm_loss": "delta_lm_loss", "kl": "delta_lm_loss"}
"""What a conversion may change, and the task that measures it."""

CONTEXTS_AT_ONCE = 8


def convert_run(
    run: Path, to: str, out: Path, wanted: Sequence[str], calibration_tokens: int, eval_tokens: int, progress: Progress
) -> str:
    """Convert SAEs, measure each on held-out tokens before and after, save them, and return the costs as a table.

    Raises:
        UserError: nothing in the run can be converted, or one of the SAEs cannot.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: choose another folder")
    manifest = read_sealed(run / "run.json")
    config = at_home(RunConfig.of_run(manifest), RunFolder(run), manifest)
    chosen = [sae for sae in saes_of(run, wanted) if sae.arch != to]
    if not chosen:
        raise UserError(f"{run} has no SAE that is not {to} already: nothing to convert")
    built_in = [to_built_in(sae.build()) for sae in chosen]
    for sae in built_in:
        check_conversion(sae, to)  # before the model is loaded
    lm = load_model(config, progress)
    tasks = {name: task for name, task in token_tasks(COSTS.values()).items() if not inapplicable(task, lm)}
    calibration: dict[Site, Tensor] = {}
    converted = []
    for foreign, before in zip(chosen, built_in, strict=True):
        about = SAEDescription.read(foreign.own["description"], Path(foreign.source.name))
        site, before = site_of(about), before.to(lm.device)
        if before.nonlinearity == "topk" and site not in calibration:
            stream = token_stream(lm, config, "train", calibration_tokens)
            calibration[site] = activations_at(lm, site, stream, progress)
        after = convert(before, to, calibration.get(site))
        converted.append((foreign.own, about, _candidate(before, site, tasks), _candidate(after, site, tasks)))
    held_out = token_stream(lm, config, "eval", min(eval_tokens, config.n_held_out))
    held_out.read()
    evaluate(lm, held_out, [candidate for _, _, *pair in converted for candidate in pair], progress)
    costs = []
    for own, about, was, now in converted:
        name = file_name(f"{to}-from-{about.id}")
        changed = {
            "id": name, "arch": now.sae.name, "label": f"{to}:from={about.arch}", "options": {},
            "converted_from": {"id": about.id, "arch": about.arch, "weights_sha256": own["sha256"]},
        }  # fmt: skip
        ours.write(out / "saes" / name, now.sae.cpu(), about.model_copy(update=changed), own["metadata"])
        costs.append({"id": name, "from": about.id, "before": _scores(was), "after": _scores(now)})
    conversion = {"run": str(run), "to": to, "calibration_tokens": calibration_tokens, "model": lm.name, "costs": costs}
    write_sealed(out / "conversion.json", conversion)
    return costs_table(costs)


@torch.no_grad()
def activations_at(lm: ActivationModel, site: Site, stream: ContextStream, progress: Progress) -> Tensor:
    """Raw activations of a stream's tokens at a site; special positions are left out."""
    found = []
    for batch in progress.track(
        "calibrate", stream.batches(CONTEXTS_AT_ONCE), stream.n_contexts, lambda b: len(b.tokens)
    ):
        contexts = Contexts.of(batch, lm.special_ids, lm.device)
        x = lm.capture(contexts.tokens, [site])[site]
        found.append(x.flatten(0, 1)[contexts.counted].float())
    return torch.cat(found)


def _candidate(sae: SparseAutoencoder, site: Site, tasks: Mapping[str, type[Task]]) -> Candidate[Task]:
    return Candidate(sae, site, {name: task() for name, task in tasks.items()})


def _scores(candidate: Candidate[Task]) -> dict[str, Any]:
    found = {}
    for metric, task in COSTS.items():
        score = candidate.results[task].scores.get(metric) if task in candidate.results else None
        found[metric] = {"value": score.value, "n": score.n} if score else {"value": None, "n": 0}
    return found


def costs_table(costs: Sequence[Mapping[str, Any]]) -> str:
    """Every metric as `before -> after`."""
    rows = []
    for cost in costs:
        values = ([cost[when][metric]["value"] for when in ("before", "after")] for metric in COSTS)
        cells = (["undefined" if value is None else f"{value:.4f}" for value in pair] for pair in values)
        rows.append([cost["from"], *map(" -> ".join, cells)])
    return tabulate(rows, ["SAE", *COSTS], tablefmt="simple", disable_numparse=True)
