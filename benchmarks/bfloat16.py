"""Evaluation with the language model's products in bfloat16 and in float32, in turn: time, and what came out.

    python benchmarks/bfloat16.py --saes RUN/saes

Both evaluate the same SAEs on the same tokens. Without --saes the SAEs are random, which spoil the language model's
predictions as no trained SAE does. Processor seconds stand beside the time, for machines that have other work.
"""

import os
import sys
import time
from pathlib import Path

import torch
from common import CONTEXT_SIZE, RESULTS, application, load_demo, ratio, table, write_result
from evaluation import random_sae

from sae_bench import TASKS
from sae_bench.evaluation.loop import Candidate, evaluate
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.saes.save import load_sae

app = application(__doc__)


@app.default
def main(
    *,
    saes: Path | None = None,
    n_saes: int = 8,
    contexts: int = 16,
    rounds: int = 3,
    threads: int = os.cpu_count() or 1,
    out: Path = RESULTS,
) -> None:
    """Time evaluations and write bfloat16.md.

    Parameters
    ----------
    saes
        Folder of trained SAEs of the demo model's layer 9.
    n_saes
        SAEs in one pass; that many of the folder at most.
    contexts
        Contexts of 128 tokens.
    rounds
        Times that each precision is timed.
    threads
        Threads.
    out
        Folder of the result.
    """
    torch.set_num_threads(threads)
    lm, site = load_demo()
    n_tokens = contexts * (CONTEXT_SIZE - 1)
    stream = TokenStream(
        "embedded", lm.tokenizer, split="eval", context_size=CONTEXT_SIZE, n_tokens=n_tokens, order_seed=0
    )
    folders = sorted(saes.iterdir())[:n_saes] if saes else [random_sae(seed, 8192, 32) for seed in range(n_saes)]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    processor: dict[bool, list[float]] = {False: [], True: []}
    scores = {}
    for number in range(rounds + 1):
        for bfloat16 in (False, True):
            lm.bfloat16_products = bfloat16
            candidates = [
                Candidate(load_sae(folder), site, {"delta_lm_loss": TASKS["delta_lm_loss"]()}) for folder in folders
            ]
            wall, busy = time.perf_counter(), time.process_time()
            evaluate(lm, stream, candidates, Progress(quiet=True))
            if number:  # the first round warms up
                seconds[bfloat16].append((time.perf_counter() - wall) / len(folders))
                processor[bfloat16].append((time.process_time() - busy) / len(folders))
            scores[bfloat16] = [candidate.results["delta_lm_loss"] for candidate in candidates]
    rows = [
        [name, f"{min(seconds[kind]):.2f}", f"{min(processor[kind]):.2f}"]
        for name, kind in (("float32", False), ("bfloat16 products", True))
    ]
    rows.append(["float32 / bfloat16", ratio(seconds[False], seconds[True]), ratio(processor[False], processor[True])])
    losses = []
    for folder, exact, coarse in zip(folders, scores[False], scores[True], strict=True):
        shown = (
            f"{of.scores[name].value:.4f}" for name in ("ce_clean", "delta_lm_loss", "kl") for of in (exact, coarse)
        )
        losses.append([folder.name, *shown])
    names = [f"{name}, {kind}" for name in ("ce_clean", "delta", "kl") for kind in ("float32", "bfloat16")]
    write_result(
        out,
        "Products in bfloat16",
        [
            f"{len(folders)} SAEs on {n_tokens} tokens of the demo model, delta_lm_loss alone. Least of {rounds} "
            "rounds in turn, for each SAE; ratio: median (quartiles) within a round.",
            table(rows, ["", "seconds", "processor seconds"]),
            "What came out, in nats.",
            table(losses, ["SAE", *names]),
        ],
        {},
        threads,
    )


if __name__ == "__main__":
    sys.exit(app())
