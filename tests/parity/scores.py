"""SAEBench's core evaluation of our SAEs on the contexts of our records, beside what our records say."""

import os
from pathlib import Path
from typing import Any

from common import Worker
from evaluation import MODEL, hub_home
from rows import Row, say

from sae_bench.formats.export import saes_of
from sae_bench.records.files import read_json
from sae_bench.records.run_folder import RunFolder

N_CONTEXTS = 2
"""Contexts that everything is compared on, for SAEBench one batch."""

SCORED = ("relu", "gated", "topk", "jumprelu")
"""Architectures whose records are compared with SAEBench's."""

SCORES_SAY = (
    "On the same tokens, as one batch, special positions left clean; ours is what `--emit saebench` writes. Where the "
    "definitions differ both numbers stand here: its `explained_variance` takes the variance about zero; its zero "
    "ablation takes in the BOS (computed its way, ours agrees); its KL takes in the last position of each context, "
    "after which the text says nothing, and is the logarithm of a softmax, infinite where a probability is too small."
)

SCORES: tuple[tuple[str, str, str, float], ...] = (
    ("model_performance_preservation", "ce_loss_without_sae", "cross-entropy, clean", 1e-3),
    ("model_performance_preservation", "ce_loss_with_sae", "cross-entropy, spliced", 1e-3),
    ("sparsity", "l0", "L0", 1e-3),
    ("reconstruction_quality", "explained_variance_legacy", "variance, legacy", 1e-3),
    ("reconstruction_quality", "cossim", "cosine", 1e-3),
    ("reconstruction_quality", "explained_variance", "variance about zero, theirs", 1e-3),
    ("reconstruction_quality", "mse", "mse, theirs", 1e-3),
    ("shrinkage", "l2_ratio", "ratio of norms", 1e-3),
    ("shrinkage", "relative_reconstruction_bias", "gamma", 1e-3),
    ("sparsity", "l1", "L1", 1e-3),
)
"""Category, SAEBench's name, ours, and the bound: relative for L0, L1 and mse, else in the metric's own unit."""

RELATIVE = ("l0", "l1", "mse")


def compare_scores(run: Path, work: Path, facts: dict[str, float]) -> tuple[list[Row], dict[str, str]]:
    """SAEBench's core evaluation of our SAEs on our contexts, against the file that we write in its format."""
    rows = []
    setting = {"model": MODEL, "threads": os.cpu_count() or 1}
    with Worker("sae_bench", setting, {"HF_HOME": str(hub_home())}) as worker:
        for arch in SCORED:
            say(f"SAEBench on {arch}")
            sae_id = folder_of(run, arch)
            result = run / "saebench" / f"{sae_id}_custom_sae_eval_results.json"
            unlike = worker.ask(result=str(result))["unlike"]
            rows.append(Row(f"{arch}: our result file in SAEBench's schema", ("", "accepted", "", ""), not unlike))
            theirs = worker.ask(sae=str(run / "saes" / sae_id), contexts=str(work / "contexts.safetensors"),
                                contexts_per_batch=N_CONTEXTS)["metrics"]  # fmt: skip
            ours = read_json(result)["eval_result_metrics"]
            for category, name, label, bound in SCORES:
                rows.append(score_row(f"{arch}: {label}", ours[category][name], theirs[category][name], bound,
                                      relative=name in RELATIVE))  # fmt: skip
            ablated = theirs["model_performance_preservation"]["ce_loss_with_ablation"]
            rows.append(score_row(f"{arch}: cross-entropy, BOS ablated too", facts["ce_zero_with_bos"], ablated, 1e-3))
            rows += [beside(f"{arch}: {label}", a, b) for label, a, b in wrong(run, sae_id, theirs)]
        return rows, worker.versions


def score_row(what: str, ours: float, theirs: float, bound: float, *, relative: bool = False) -> Row:
    """Two values of the same thing."""
    difference = abs(ours - theirs) / (max(abs(theirs), 1e-12) if relative else 1.0)
    say(f"{what}: {ours:.6g} and {theirs:.6g}")
    limit = f"{bound:g}{' relative' if relative else ''}"
    return Row(what, (f"{ours:.6g}", f"{theirs:.6g}", f"{difference:.1e}", limit), difference <= bound)


def beside(what: str, ours: float | None, theirs: float) -> Row:
    """Two values that are not of the same thing."""
    return Row(
        what, ("undefined" if ours is None else f"{ours:.6g}", f"{theirs:.6g}", "", "differs by definition"), True
    )


def wrong(run: Path, sae_id: str, theirs: dict[str, Any]) -> list[tuple[str, float | None, float]]:
    """Where SAEBench's definition is not ours: both numbers."""
    records = {r.task: r.scores for r in RunFolder(run).records() if r.sae.id == sae_id}
    losses, quality = records["delta_lm_loss"], records["reconstruction"]
    behaviour, performance = theirs["model_behavior_preservation"], theirs["model_performance_preservation"]
    return [
        ("variance explained", quality["fve"].value, theirs["reconstruction_quality"]["explained_variance"]),
        ("cross-entropy, zero-ablated", losses["ce_zero"].value, performance["ce_loss_with_ablation"]),
        ("KL", losses["kl"].value, behaviour["kl_div_with_sae"]),
    ]


def folder_of(run: Path, arch: str) -> str:
    """The name of the SAE of an architecture."""
    return next(str(sae.own["description"]["id"]) for sae in saes_of(run) if sae.own and sae.arch == arch)
