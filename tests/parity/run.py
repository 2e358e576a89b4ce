"""Do other tools read our files, do we read theirs, and does SAEBench measure what we measure?

    make parity        # or: python tests/parity/run.py

Makes the peers' environments where they are missing, trains the four architectures for a few steps on Gemma 3 270M, and
compares: latents and reconstructions on real activations, both ways; then SAEBench's core evaluation on the very
contexts of our records. Prints the table, writes RESULTS.md beside this file with --write, and fails where a bound does
not hold.

A latent within rounding of its threshold may be on for one side and off for the other. Such flips are counted, at most
one pair in a hundred thousand, and tokens that have one are left out of the differences.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import torch  # noqa: E402
from common import CONTEXT_SIZE, LAYER, Worker, application, machine, scratch, table  # noqa: E402
from evaluation import MODEL, hub_home  # noqa: E402
from places import WIDTH, K, compare_places, parts_of  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from sae_bench.formats.export import export, saes_of  # noqa: E402
from sae_bench.formats.open import find_sources, open_sae  # noqa: E402
from sae_bench.lm.contexts import Contexts  # noqa: E402
from sae_bench.lm.load import load_language_model  # noqa: E402
from sae_bench.lm.losses import token_losses  # noqa: E402
from sae_bench.lm.sites import find_site  # noqa: E402
from sae_bench.records.files import read_json, read_sealed, write_json  # noqa: E402
from sae_bench.records.run_folder import RunFolder  # noqa: E402
from sae_bench.runs.config import RunConfig  # noqa: E402
from sae_bench.runs.provenance import own_version  # noqa: E402
from sae_bench.runs.sources import token_stream  # noqa: E402
from sae_bench.saes.convert import to_built_in  # noqa: E402

N_CONTEXTS = 2
BOUND = 1e-5
"""Largest difference of a latent or a reconstruction, relative to the largest one."""

SCORED = ("relu", "gated", "topk", "jumprelu")
"""Architectures whose records are compared with SAEBench's."""

SAELENS = {
    "relu": "standard", "gated": "gated", "topk": "topk", "jumprelu": "jumprelu", "abs_topk": "abstopk",
    "matching_pursuit": "matching_pursuit",
}  # fmt: skip
DL = {
    "relu": "AutoEncoderNew",
    "gated": "GatedAutoEncoder",
    "topk": "AutoEncoderTopK",
    "jumprelu": "JumpReluAutoEncoder",
}
THEIRS = (
    *(("SAELens", kind) for kind in (*SAELENS.values(), "batchtopk", "matryoshka_batchtopk")),
    *(
        ("dictionary_learning", kind)
        for kind in ("AutoEncoder", *DL.values(), "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
    ),
    ("sparsify", "sparsify"),
    *(("llamascopium", kind) for kind in ("relu", "topk", "jumprelu")),
    *(("SAELens", kind) for kind in ("gemma_scope_2", "qwen_scope", "goodfire", "llama_scope")),
)
NAMES = {
    ("sparsify", "sparsify"): "sparsify", ("SAELens", "batchtopk"): "SAELens's batchtopk, a checkpoint of training",
    ("SAELens", "gemma_scope_2"): "Gemma Scope 2, as SAELens reads it",
    ("SAELens", "qwen_scope"): "Qwen Scope, as SAELens reads it",
    ("SAELens", "goodfire"): "Goodfire, as SAELens reads it",
    ("SAELens", "llama_scope"): "Llama Scope, as SAELens reads it",
}  # fmt: skip
"""What a row is called that is not "TOOL's CLASS"."""

FILES_SAY = (
    f"Largest difference relative to the largest value, which has to stay below {BOUND:g}. Flips are latents within "
    "rounding of their threshold that are on for one side only: at most 1e-5 of all pairs, left out with their tokens."
)
SCORES_SAY = (
    "On the same tokens, as one batch, special positions left clean; ours is what `--emit saebench` writes. Where the "
    "definitions differ both numbers stand here: its `explained_variance` takes the variance about zero; its zero "
    "ablation takes in the BOS (computed its way, ours agrees); its KL takes in the last position of each context, "
    "after which the text says nothing, and is the logarithm of a softmax, infinite where a probability is too small."
)

app = application(__doc__)


@dataclass(frozen=True)
class Row:
    """One line of the table, and whether its bound holds."""

    what: str
    cells: tuple[str, ...]
    holds: bool


@app.default
def main(*, write: bool = False, again: bool = False) -> int:
    """Run everything.

    Parameters
    ----------
    write
        Write RESULTS.md.
    again
        Compare the SAEs that were trained the last time.
    """
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "setup_peers.py", "sae_bench", "dictionary_learning", "llamascopium"],
        check=True,
    )
    work = scratch() / "parity"
    if not again:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        say("training ours")
        trained(work)
        measure(work / "run", work)
    run = work / "run"
    for folder in ("theirs", "saelens", "dictionary_learning", "sparsify", "gemma-scope-2"):
        shutil.rmtree(work / folder, ignore_errors=True)
    facts = read_json(work / "facts.json")
    say("reading each other's files")
    files, versions = compare_files(run, work)
    scores, more = compare_scores(run, work, facts)
    return report(files, scores, versions | more, write=write)


def say(what: str) -> None:
    """Progress, as it happens."""
    print(what, file=sys.stderr, flush=True)


def trained(work: Path) -> None:
    """Make a run of ours: every architecture, for a few steps, evaluated on the contexts that SAEBench will get."""
    settings = {
        "--arch": "all", "--model": "demo", "--layer": LAYER, "--width": WIDTH, "--l0": K, "--tokens": 1024,
        "--reuse": 16, "--batch-size": 256, "--context-size": CONTEXT_SIZE, "--device": "cpu",
        "--eval-tokens": N_CONTEXTS * (CONTEXT_SIZE - 1), "--out": work / "run", "--emit": "saebench",
        "--dtype": "float32",
    }  # fmt: skip
    arguments = [str(part) for pair in settings.items() for part in pair]
    subprocess.run([sys.executable, ROOT / "bench.py", *arguments], check=True, cwd=ROOT)


@torch.no_grad()
def measure(run: Path, work: Path) -> None:
    """Save the contexts and their raw activations; and what zero ablation costs if the BOS is ablated, too."""
    config = RunConfig(**read_sealed(run / "run.json")["config"])
    lm = load_language_model("demo", device="cpu", dtype=torch.float32)
    site = find_site(lm.model, "resid_post", LAYER)
    (batch,) = token_stream(lm, config, "eval", config.n_held_out).batches(N_CONTEXTS)
    save_file({"contexts": batch.tokens}, work / "contexts.safetensors")
    contexts = Contexts.of(batch, lm.special_ids, lm.device)
    clean = lm.clean_pass(contexts.tokens, [site])
    x = clean.activations[site].flatten(0, 1)[contexts.counted].contiguous()
    save_file({"x": x}, work / "x.safetensors")
    save_file(parts_of(x), work / "parts.safetensors")
    ablated = clean.replay(site, torch.zeros_like(clean.activations[site])).flatten(0, 1)[contexts.predicts]
    losses = token_losses(lm, clean.hidden.flatten(0, 1)[contexts.predicts], [ablated], contexts.targets)
    write_json(work / "facts.json", {"ce_zero_with_bos": float(losses.ce[0].double().mean())})


def compare_files(run: Path, work: Path) -> tuple[list[Row], dict[str, str]]:
    """Latents and reconstructions of every SAE, ours read by them and theirs read by us."""
    rows: list[Row] = []
    with (
        Worker("sae_lens_files", {}) as lens, Worker("dictionary_learning_files", {}) as dl,
        Worker("llamascopium_files", {}) as scope,
    ):  # fmt: skip
        workers = {"SAELens": lens, "dictionary_learning": dl, "sparsify": dl, "llamascopium": scope}
        for tool, kind, folder, ours, name in written_by_us(run, work):
            workers[tool].ask(
                do="load", folder=str(folder), kind=kind, x=str(work / "x.safetensors"), out=str(work / "out")
            )
            rows.append(compared(f"our {name}, read by {tool}", run / "saes" / ours, work))
        for tool, kind in THEIRS:
            leaf = "SAE-Res-Qwen3-1.7B-Base-W1K-L0_32" if kind == "qwen_scope" else "layers.9"
            folder = work / "theirs" / f"{tool}.{kind}" / leaf
            workers[tool].ask(do="make", folder=str(folder), kind=kind, x=str(work / "x.safetensors"),
                              out=str(work / "out"), parts=str(work / "parts.safetensors"))  # fmt: skip
            name = NAMES.get((tool, kind), f"{tool}'s {kind}")
            rows.append(compared(f"{name}, read by us", folder, work))
        lm = load_language_model("demo", device="cpu", dtype=torch.float32)
        tokens = load_file(work / "contexts.safetensors")["contexts"]
        for what, mine, theirs, holds in compare_places(lm, tokens, workers, work):
            rows.append(Row(f"{what}: FVE", ("", f"{mine:.6f}", f"{theirs:.6f}", ""), holds))
        return rows, lens.versions | dl.versions | scope.versions


def written_by_us(run: Path, work: Path) -> Iterator[tuple[str, str, Path, str, str]]:
    """Tool, its name for the class, folder, the SAE's id and what to call it, of everything that others shall read."""
    for sae in saes_of(run):
        sae_id, built = str(sae.own["description"]["id"]), to_built_in(sae.build())
        f, name = built.nonlinearity or "", sae.arch if sae.arch == built.name else f"{sae.arch}, as {built.name}"
        folder = run / "saes" / sae_id
        if not (folder / "cfg.json").exists():
            (folder,) = export(run, "saelens", work / "saelens", [sae_id])
        yield "SAELens", SAELENS[f], folder, sae_id, name
        if f in DL:
            (folder,) = export(run, "dictionary_learning", work / "dictionary_learning", [sae_id])
            yield "dictionary_learning", DL[f], folder, sae_id, name
        if f == "topk":
            (folder,) = export(run, "sparsify", work / "sparsify", [sae_id])
            yield "sparsify", "sparsify", folder, sae_id, name
        if f == "jumprelu":
            (folder,) = export(run, "gemma-scope-2", work / "gemma-scope-2", [sae_id])
            yield "SAELens", "gemma_scope_2", folder, sae_id, f"{name}, in Gemma Scope 2's layout"


def folder_of(run: Path, arch: str) -> str:
    """The name of the SAE of an architecture."""
    return next(str(sae.own["description"]["id"]) for sae in saes_of(run) if sae.own and sae.arch == arch)


@torch.no_grad()
def compared(what: str, folder: Path, work: Path) -> Row:
    """Ours against what a worker has just put out."""
    (source,) = find_sources(str(folder))
    sae = open_sae(source).build()
    x, theirs = load_file(work / "x.safetensors")["x"], load_file(work / "out")
    f, x_hat = sae.encode(x).to_dense(), sae(x)  # type: ignore[operator]
    flipped = (f != 0) != (theirs["f"] != 0)
    same = ~flipped.any(1)
    latents, reconstruction = (
        float((a[same] - b[same]).abs().max() / b.abs().max()) for a, b in ((f, theirs["f"]), (x_hat, theirs["x_hat"]))
    )
    share = float(flipped.float().mean())
    holds = latents < BOUND and reconstruction < BOUND and share <= 1e-5
    l0 = float((f != 0).sum(1).float().mean())
    say(f"{what}: L0 {l0:.1f}, latents {latents:.1e}, reconstruction {reconstruction:.1e}, {int(flipped.sum())} flips")
    return Row(what, (f"{l0:.1f}", f"{latents:.1e}", f"{reconstruction:.1e}", str(int(flipped.sum()))), holds)


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


def report(files: Sequence[Row], scores: Sequence[Row], versions: dict[str, str], *, write: bool) -> int:
    """Print the tables; 1 if a bound does not hold."""
    used = ", ".join(f"{name} {number}" for name, number in (own_version() | versions).items())
    parts = [
        "# Parity",
        f"Gemma 3 270M, residual stream after layer {LAYER}, float32; {N_CONTEXTS} contexts of {CONTEXT_SIZE} tokens "
        f"of the embedded corpus; width {WIDTH}. Written by `python tests/parity/run.py --write`.",
        "## Files",
        FILES_SAY,
        table(as_cells(files), ["", "L0", "latents", "reconstruction", "flips", "holds"]),
        "## SAEBench's core evaluation",
        SCORES_SAY,
        table(as_cells(scores), ["", "ours", "SAEBench", "difference", "bound", "holds"]),
        "## Setting",
        f"{machine()}. {used}.",
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if write:
        (Path(__file__).parent / "RESULTS.md").write_text(text)
    broken = [row.what for row in (*files, *scores) if not row.holds]
    for what in broken:
        print(f"DIFFERS: {what}", file=sys.stderr)
    return 1 if broken else 0


def as_cells(rows: Sequence[Row]) -> list[list[str]]:
    return [[row.what, *row.cells, "yes" if row.holds else "NO"] for row in rows]


if __name__ == "__main__":
    sys.exit(app())
