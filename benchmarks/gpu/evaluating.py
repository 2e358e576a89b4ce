"""(e) Evaluation of several SAEs in one pass: tokens a second and SAE, and where the time goes."""

import statistics
import time
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from workers.ours import set_density

from gpu.model import Text, language_model, make_text, stream
from gpu.parts import PartTimer
from gpu.report import Report, peak_gb, wait
from gpu.scale import Scale
from gpu.steps import drawn_on
from sae_bench import ARCHITECTURES, TASKS, SAEConfig, SparseAutoencoder
from sae_bench.evaluation import loop
from sae_bench.evaluation.loop import Candidate, evaluate
from sae_bench.evaluation.task import token_tasks
from sae_bench.lm.ablations import Ablations
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.replay import CleanPass
from sae_bench.lm.sites import find_site
from sae_bench.progress import Progress
from sae_bench.registry import known_architectures
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle

ABOUT = "(e) Evaluation"
REST = "the rest"

PARTS: tuple[tuple[object, str, str], ...] = (
    (loop, "site_means", "mean activations"),
    (LanguageModel, "clean_pass", "clean pass"),
    (Ablations, "losses", "ablations"),
    (SparseAutoencoder, "decode", "decode"),
    (CleanPass, "splice", "replays"),
    (loop, "token_losses", "vocabulary"),
    *((task, "update", f"task {name}") for name, task in token_tasks(TASKS).items() if not task.needs_truth),
    *((ARCHITECTURES[arch], "encode", "encode") for arch in known_architectures(False)),
)
"""Who has it, its name, the part that it is."""


def run(report: Report, scale: Scale) -> None:
    """Every row."""
    text = make_text(scale)
    lm = language_model(scale, text)
    saes = some_saes(lm, text, scale)
    report.facts |= {"about": ABOUT, "SAEs": len(saes), "width": scale.widths[0], "tokens": scale.n_evaluated}
    report.run("evaluation", "first pass (checks replays)", partial(timed, lm, text, scale, saes[:1], 1))
    report.run("evaluation", "as it is", partial(timed, lm, text, scale, saes, 1), seconds=5)
    report.run("parts", "as it is", partial(part_rows, lm, text, scale, saes), seconds=5)
    report.run("evaluation", "batches 8 times as large", partial(timed, lm, text, scale, saes, 8), seconds=10)
    report.run("evaluation", "one SAE", partial(timed, lm, text, scale, saes[:1], 1), seconds=5)


def some_saes(lm: LanguageModel, text: Text, scale: Scale) -> list[SparseAutoencoder]:
    """SAEs of all architectures in turn, untrained, with about the wanted L0 on the model's activations."""
    site = find_site(lm.model, "resid_post", scale.layer)
    n_contexts = max(2, 4096 // scale.context)
    tokens = next(stream(lm, text, scale, "train", n_contexts * scale.context).batches(n_contexts)).tokens
    x = lm.capture(tokens, [site])[site][:, 1:].flatten(0, 1).float()
    size = float(x.square().sum(1).mean().sqrt())
    x = x / size
    names, saes = known_architectures(False), []
    for i in range(scale.n_evaluated_saes):
        arch = names[i % len(names)]
        options, _ = settle(ArchSpec(name=arch), "short")
        config = SAEConfig(d_in=site.d_in, d_sae=scale.widths[0], l0=scale.l0, seed=i, options=options)
        with drawn_on(scale.device), torch.no_grad():
            sae = ARCHITECTURES[arch](config).requires_grad_(False)
            sae.b_dec.copy_(x.mean(0))
            set_density(sae, x, scale.l0 / scale.widths[0])
            saes.append(sae.fold(size))
    return saes


def timed(lm: LanguageModel, text: Text, scale: Scale, saes: list[SparseAutoencoder], factor: int) -> dict[str, Any]:
    """A whole evaluation with all tasks about tokens; `factor` on what a batch may hold."""
    if scale.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    held_out = stream(lm, text, scale, "eval", scale.n_evaluated)
    site = find_site(lm.model, "resid_post", scale.layer)
    candidates = [
        Candidate(sae, site, {name: task() for name, task in token_tasks(TASKS).items() if not task.needs_truth})
        for sae in saes
    ]
    with patch.object(loop, "BATCH_BYTES", factor * loop.BATCH_BYTES):
        at_once = loop.contexts_at_once(lm, scale.context)
        start = time.perf_counter()
        evaluate(lm, held_out, candidates, Progress(quiet=True))
        wait(lm.device)
    seconds = time.perf_counter() - start
    failures = [failure for candidate in candidates for failure in candidate.failures.values()]
    l0s = [c.results["reconstruction"].scores["l0"].value or 0 for c in candidates if "reconstruction" in c.results]
    return {
        "SAEs": len(saes), "contexts at once": at_once, "seconds": seconds,
        "tokens/s and SAE": held_out.n_delivered * len(saes) / seconds,
        "s per SAE and 1,024 tokens": seconds / len(saes) / held_out.n_delivered * 1024,
        "mean L0": statistics.fmean(l0s) if l0s else 0.0, "peak GB": peak_gb(scale.device),
        "note": "; ".join(failures), "ok": not failures,
    }  # fmt: skip


def part_rows(lm: LanguageModel, text: Text, scale: Scale, saes: list[SparseAutoencoder]) -> list[dict[str, Any]]:
    """The time of every part of an evaluation, and of the rest."""
    timer = PartTimer(scale.device)
    with ExitStack() as patches:
        for owner, name, part in PARTS:
            patches.enter_context(patch.object(owner, name, timer.wrapped(getattr(owner, name), part)))
        timer.begin(REST)
        timed(lm, text, scale, saes, 1)
        timer.end()
    found = timer.own_ms()
    total = sum(found.values())
    return [
        {"part": part, "seconds": ms / 1000, "share": ms / total}
        for part, ms in sorted(found.items(), key=lambda item: -item[1])
    ]
