"""Evaluation: all our metrics for several SAEs in one pass, against SAEBench's core task for one of them.

    python benchmarks/setup_peers.py     # once
    python benchmarks/evaluation.py

The SAEs are random: what an evaluation costs does not depend on how good an SAE is. Both sides get the same contexts,
as many in a batch, and keep special positions clean. SAEBench runs in between our repeats, one SAE at a time.
"""

import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
from common import (
    CONTEXT_SIZE,
    D_IN,
    LAYER,
    RESULTS,
    Worker,
    application,
    load_demo,
    metadata,
    ratio,
    scratch,
    table,
    write_result,
)
from safetensors.torch import save_file
from workers.protocol import peak_gib

import sae_bench.evaluation.loop
from sae_bench import ARCHITECTURES, TASKS, SAEConfig
from sae_bench.evaluation.loop import Candidate, evaluate
from sae_bench.evaluation.task import Score, token_tasks
from sae_bench.lm.model_names import resolve_model
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.saes.save import load_sae, save_sae

MODEL = "google/gemma-3-270m"

app = application(__doc__)


@app.default
def main(
    *,
    n_saes: int = 8,
    contexts: int = 32,
    contexts_per_batch: int = 8,
    d_sae: int = 8192,
    k: int = 32,
    rounds: int = 3,
    threads: int = os.cpu_count() or 1,
    out: Path = RESULTS,
) -> None:
    """Time evaluations and write evaluation.md.

    Parameters
    ----------
    n_saes
        SAEs that we evaluate in one pass.
    contexts
        Contexts of 128 tokens.
    contexts_per_batch
        Contexts in a batch; a divisor of their number. SAEBench needs 1.2 GB for each.
    d_sae
        Latents.
    k
        Active latents on a token.
    rounds
        Times that each side is timed.
    threads
        Threads.
    out
        Folder of the result.
    """
    assert contexts % contexts_per_batch == 0, "SAEBench takes whole batches"
    torch.set_num_threads(threads)
    sae_bench.evaluation.loop.MAX_CONTEXTS = contexts_per_batch
    lm, site = load_demo()
    stream = TokenStream(
        "embedded",
        lm.tokenizer,
        split="eval",
        context_size=CONTEXT_SIZE,
        n_tokens=contexts * (CONTEXT_SIZE - 1),
        order_seed=0,
    )
    tokens = torch.cat([batch.tokens for batch in stream.batches(contexts)])
    file = scratch() / "contexts.safetensors"
    save_file({"contexts": tokens}, file)
    folders = [random_sae(seed, d_sae, k) for seed in range(n_saes)]
    saes = [load_sae(folder) for folder in folders]

    ours, theirs = [], []
    with Worker("sae_bench", {"model": MODEL, "threads": threads}, {"HF_HOME": str(hub_home())}) as worker:
        for number in range(rounds + 1):
            tasks = token_tasks(TASKS)
            candidates = [Candidate(sae, site, {name: task() for name, task in tasks.items()}) for sae in saes]
            start = time.perf_counter()
            evaluate(lm, stream, candidates, Progress(quiet=True))
            taken = (time.perf_counter() - start) / n_saes
            if number == 0:  # warms up, and checks once that a replay is exact
                continue
            ours.append(taken)
            reply = worker.ask(
                sae=str(folders[number % n_saes]), contexts=str(file), contexts_per_batch=contexts_per_batch
            )
            theirs.append(reply["seconds"])
        versions = worker.versions
    unit = tokens.numel() / 1024
    rows = [
        ["ours", f"{statistics.median(ours) / unit:.2f}", "", f"{peak_gib():.1f}"],
        ["SAEBench core", f"{statistics.median(theirs) / unit:.2f}", ratio(theirs, ours), f"{reply['peak_gib']:.1f}"],
    ]
    scores = {name: score for r in candidates[rounds % n_saes].results.values() for name, score in r.scores.items()}
    flat = {name: value for group in reply["metrics"].values() for name, value in group.items()}
    write_result(
        out,
        "Evaluation",
        [
            f"{n_saes} random topk SAEs (k {k}, d_sae {d_sae}) at layer {LAYER} of Gemma 3 270M, residual stream, "
            f"float32; {contexts} contexts of {CONTEXT_SIZE} tokens, {contexts_per_batch} in a batch; all metrics of "
            f"{', '.join(TASKS)}. Medians of {rounds} interleaved rounds; ratio: median (quartiles) within a round. "
            "Loading the model is not counted, and SAEBench's metrics of weights alone are off.",
            table(rows, ["", "seconds per SAE and 1,024 tokens", "SAEBench / ours", "peak memory, GiB"]),
            "What both measured on one SAE, to show that both did the work. SAEBench's zero ablation takes in the BOS, "
            "which ours keeps clean, and its variance is about zero.",
            table([[n, _value(scores[a]), f"{flat[b]:.4f}"] for n, a, b in SHARED], ["metric", "ours", "SAEBench"]),
        ],
        versions,
        threads,
    )


SHARED = (
    ("cross-entropy, clean", "ce_clean", "ce_loss_without_sae"),
    ("cross-entropy, spliced", "ce_spliced", "ce_loss_with_sae"),
    ("cross-entropy, zero-ablated", "ce_zero", "ce_loss_with_ablation"),
    ("KL", "kl", "kl_div_with_sae"),
    ("L0", "l0", "l0"),
    ("cosine", "cosine", "cossim"),
    ("fraction of variance explained", "fve", "explained_variance"),
)
"""What is shown, its name here, its name there."""


def _value(score: Score) -> str:
    return "undefined" if score.value is None else f"{score.value:.4f}"


def random_sae(seed: int, d_sae: int, k: int) -> Path:
    """An untrained topk SAE in a folder of its own, in SAELens's format."""
    lm_metadata = {
        "model_name": MODEL,
        "hook_name": f"blocks.{LAYER}.hook_resid_post",
        "prepend_bos": True,
        "context_size": CONTEXT_SIZE,
        "dataset_path": "embedded",
    }
    sae = ARCHITECTURES["topk"](SAEConfig(d_in=D_IN, d_sae=d_sae, l0=k, seed=seed)).requires_grad_(False)
    folder = scratch() / "saes" / f"{seed}"
    save_sae(folder, sae.fold(float(metadata()["scale"])), None, lm_metadata, [])
    return folder


def hub_home() -> Path:
    """A cache of the hub with the demo model under its hub name, so that TransformerLens finds it offline."""
    _, folder = resolve_model("demo")
    home = scratch() / "hub_home"
    shutil.rmtree(home, ignore_errors=True)
    model = home / "hub" / f"models--{MODEL.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("demo")
    (model / "snapshots").mkdir()
    (model / "snapshots" / "demo").symlink_to(folder)
    return home


if __name__ == "__main__":
    sys.exit(app())
