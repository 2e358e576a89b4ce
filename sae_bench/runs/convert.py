"""`convert`: a run's SAEs as another architecture, and what that costs: each is measured before and after in one pass.

The results lie in a folder like a run's, without a run: `--sae FOLDER` takes it. `conversion.json` keeps the numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from sae_bench.errors import UserError
from sae_bench.evaluation.loop import Candidate, evaluate
from sae_bench.evaluation.task import token_tasks
from sae_bench.formats import ours
from sae_bench.formats.export import saes_of
from sae_bench.lm.contexts import Contexts
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site, site_of
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.records.names import file_name
from sae_bench.records.schema import SAEDescription, Score
from sae_bench.runs.config import RunConfig
from sae_bench.runs.sources import load_model, token_stream
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.convert import convert, to_built_in

COSTS = {"l0": "reconstruction", "fve": "reconstruction", "delta_lm_loss": "delta_lm_loss", "kl": "delta_lm_loss"}
"""What a conversion may change, and the task that measures it."""

CONTEXTS_AT_ONCE = 8


@dataclass(frozen=True)
class Converted:
    """An SAE before and after."""

    id: str
    own: Mapping[str, Any]
    site: Site
    before: SparseAutoencoder
    after: SparseAutoencoder


def convert_run(
    run: Path, to: str, out: Path, wanted: Sequence[str], calibration_tokens: int, eval_tokens: int, progress: Progress
) -> str:
    """Convert SAEs, measure each on held-out tokens before and after, save them, and return the costs as a table.

    Raises:
        UserError: nothing in the run can be converted.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: choose another folder")
    config = RunConfig(**read_sealed(run / "run.json")["config"])
    chosen = [sae for sae in saes_of(run, wanted) if sae.arch != to]
    if not chosen:
        raise UserError(f"{run} has no SAE that is not {to} already: nothing to convert")
    lm = load_model(config, progress)
    calibration: dict[Site, Tensor] = {}
    converted = []
    for sae in chosen:
        assert sae.own is not None, "an SAE of a run"
        saved = SAEDescription.read(sae.own["description"], Path(sae.where))
        site, before = site_of(saved), to_built_in(sae.build()).to(lm.device)
        if before.nonlinearity == "topk" and site not in calibration:
            stream = token_stream(lm, config, "train", calibration_tokens)
            calibration[site] = activations_at(lm, site, stream, progress)
        after = convert(before, to, calibration.get(site))
        name = file_name(f"{to}-from-{sae.own['description']['id']}")
        converted.append(Converted(name, sae.own, site, before, after))
    held_out = token_stream(lm, config, "eval", min(eval_tokens, config.n_held_out))
    costs = measure(lm, converted, held_out, progress)
    for one in converted:
        _save(out, one, to)
    about = {"run": str(run), "to": to, "calibration_tokens": calibration_tokens, "model": lm.name, "costs": costs}
    write_sealed(out / "conversion.json", about)
    return costs_table(costs)


@torch.no_grad()
def activations_at(lm: LanguageModel, site: Site, stream: TokenStream, progress: Progress) -> Tensor:
    """Raw activations of a stream's tokens at a site; special positions are left out."""
    found = []
    for batch in progress.track(
        "calibrate", stream.batches(CONTEXTS_AT_ONCE), stream.n_contexts, lambda b: len(b.tokens)
    ):
        contexts = Contexts.of(batch, lm.special_ids, lm.device)
        x = lm.capture(contexts.tokens, [site])[site]
        found.append(x.flatten(0, 1)[contexts.counted].float())
    return torch.cat(found)


def measure(
    lm: LanguageModel, converted: Sequence[Converted], stream: TokenStream, progress: Progress
) -> list[dict[str, Any]]:
    """The scores of every SAE before and after, on the same held-out tokens, in one pass."""
    stream.read()
    tasks = token_tasks(COSTS.values())
    pairs = [
        tuple(Candidate(sae, one.site, {name: cls() for name, cls in tasks.items()}) for sae in (one.before, one.after))
        for one in converted
    ]
    evaluate(lm, stream, [candidate for pair in pairs for candidate in pair], progress)
    return [
        {"id": one.id, "from": one.own["description"]["id"], "before": _scores(before), "after": _scores(after)}
        for one, (before, after) in zip(converted, pairs, strict=True)
    ]


def _scores(candidate: Candidate) -> dict[str, Any]:
    def number(score: Score | None) -> dict[str, Any]:
        return {"value": score.value, "n": score.n} if score else {"value": None, "n": 0}

    results = {name: result.scores for name, result in candidate.results.items()}
    return {metric: number(results.get(task, {}).get(metric)) for metric, task in COSTS.items()}


def costs_table(costs: Sequence[Mapping[str, Any]]) -> str:
    """Every metric as `before -> after`."""

    def cell(cost: Mapping[str, Any], metric: str) -> str:
        values = [cost[when][metric]["value"] for when in ("before", "after")]
        return " -> ".join("undefined" if value is None else f"{value:.4f}" for value in values)

    rows = [[cost["from"], *(cell(cost, metric) for metric in COSTS)] for cost in costs]
    return tabulate(rows, ["SAE", *COSTS], tablefmt="simple", disable_numparse=True)


def _save(out: Path, one: Converted, to: str) -> None:
    own = SAEDescription.read(one.own["description"], out)
    changed = {
        "id": one.id, "arch": one.after.name, "label": f"{to}:from={own.arch}", "options": {},
        "converted_from": {"id": own.id, "arch": own.arch, "weights_sha256": one.own["sha256"]},
    }  # fmt: skip
    ours.write(out / "saes" / one.id, one.after.cpu(), own.model_copy(update=changed), one.own["metadata"])
