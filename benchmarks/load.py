"""How the leaderboard and a run bear load: 20,000 records tabulated, compared and reported; 300 SAEs in one run.

    python benchmarks/load.py
    python benchmarks/load.py --runs=false --documents 256 # records as long as those of a board of 256 documents

Every command is timed whole, from the shell's side, in a process of its own. Records are made by the harness's own
writer: eight architectures and two controls at five L0s with five seeds, layer after layer until there are as many as
asked for, each with eight tasks. Their numbers follow a plan and mean nothing.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import RESULTS, application, scratch, table, write_result

from sae_bench.errors import UserError
from sae_bench.progress import Progress
from sae_bench.records.names import file_name
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import (
    ON_TEXTS,
    ON_TOKENS,
    Metric,
    Provenance,
    Record,
    SAEDescription,
    Score,
    SiteDescription,
    Training,
    write_record,
)

ROOT = Path(__file__).parent.parent

LABELS = ("abs_topk", "batchtopk", "gated", "jumprelu", "matryoshka", "p_anneal", "relu", "topk")
CONTROLS = ("permuted", "random")
TARGETS, SEEDS = (16.0, 32.0, 64.0, 128.0, 256.0), (0, 1, 2, 3, 4)
WIDTH, N_UNITS = 1024, 20
"""Latents, and units of the text that tasks bring."""

Better = Literal["up", "down"] | None
TASKS: dict[str, tuple[str, dict[str, tuple[Better, str | None]]]] = {
    "reconstruction": (ON_TOKENS, {
        "l0": (None, "active / tokens"), "fve": ("up", "1 - squared_error / variance"),
        "gamma_centred": (None, "deviation_hat_squared / inner_centred"), "cosine": ("up", "cosine / tokens"),
    }),
    "delta_lm_loss": (ON_TOKENS, {
        "delta_lm_loss": ("down", "added / predictions"), "kl": ("down", "kl / predictions"),
        "loss_recovered_mean": ("up", "1 - added / added_by_mean"),
    }),
    "feature_density": (ON_TOKENS, {"dead_share": ("down", None), "dense_10pct_share": ("down", None)}),
    "geometry": (ON_TOKENS, {"nth_projection": (None, "nth / norm"), "max_decoder_cosine": (None, None)}),
    "stability": (ON_TOKENS, {"fve_shared": ("up", "1 - squared_error / variance"), "pw_mcc": ("up", None)}),
    "sparse_probing": (ON_TEXTS, {"auc_k1": ("up", "auc_k1 / sets"), "auc_k16": ("up", "auc_k16 / sets")}),
    "absorption": (ON_TEXTS, {
        "absorption_fraction_centred": ("down", "absorption_fraction_centred / letters"),
        "split_latents_f1": ("up", "split_latents_f1 / letters"),
    }),
    "autointerp": ("latents", {"detection": ("up", None), "fuzzing": ("up", None)}),
}  # fmt: skip
"""What each task is measured on, and its metrics: the better direction, and the sums by document if there are any."""

app = application(__doc__)


@app.default
def main(
    *,
    n_records: int = 20_000,
    documents: int = 32,
    n_saes: tuple[int, ...] = (30, 300),
    runs: bool = True,
    boards: bool = True,
    out: Path = RESULTS,
) -> None:
    """Time commands and runs and write load.md.

    Parameters
    ----------
    n_records
        Records in the folder.
    documents
        Documents of their sums.
    n_saes
        Numbers of SAEs in one run: three architectures, five seeds, and as many L0s as it takes.
    runs
        Time runs.
    boards
        Time what is made of records.
    out
        Folder of the result.
    """
    os.environ |= {"OMP_NUM_THREADS": "1"}
    parts = []
    if boards:
        parts += ["## Records", of_records(n_records, documents)]
    if runs:
        parts += ["## SAEs in one run", of_runs(n_saes)]
    write_result(out, "Load", parts, {}, 1)


# --- commands --------------------------------------------------------------------------------------------------------

MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=2)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
"""
"""Linux counts what a process was before it became another as its memory, too: this one is small."""


@dataclass(frozen=True)
class Taken:
    """What a command took."""

    seconds: float
    processor: float
    peak_bytes: int


def taken(*words: object) -> Taken:
    """Run a command of bench.py to its end."""
    command = [sys.executable, "-S", "-c", MEASURE, sys.executable, ROOT / "bench.py", *words]
    log = scratch() / "load.log"
    with log.open("w") as said:
        done = subprocess.run([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=said, check=True)
    code, *found = json.loads(done.stdout)
    if code:
        sys.exit(f"bench.py {' '.join(map(str, words))} ended with {code}; what it said is in {log}")
    return Taken(*found)


def cells(of: Taken) -> list[str]:
    return [f"{of.seconds:.1f}", f"{of.processor:.1f}", f"{of.peak_bytes / 1e6:,.0f}"]


# --- records ---------------------------------------------------------------------------------------------------------


def of_records(n_records: int, n_documents: int) -> str:
    """What each command takes of a folder of so many records."""
    folder = scratch() / f"load-{n_records}-{n_documents}"
    if not (folder / "run.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make(folder, n_records, n_documents)
    # Whole, so that the first command finds them in memory, as the others do, and as they are after a run.
    sizes = [len(path.read_bytes()) for path in (folder / "records").iterdir()]
    with tempfile.TemporaryDirectory() as beside:
        page = Path(beside) / "report.html"
        commands: dict[str, list[object]] = {
            "table": ["table", folder],
            "compare": ["compare", folder],
            "report": ["report", folder, "--out", page],
        }
        rows = [[name, *cells(taken(*words))] for name, words in commands.items()]
        n_bytes = page.stat().st_size
    about = (
        f"{len(sizes):,} sealed records of {len(sizes) // len(TASKS):,} SAEs and {n_documents} documents, "
        f"{sum(sizes) / 1e6:,.0f} MB. The report's page has {n_bytes / 1e6:.2f} MB."
    )
    return f"{about}\n\n{table(rows, ['command', 'seconds', 'processor, s', 'peak, MB'])}"


def make(folder: Path, n_records: int, n_documents: int) -> None:
    """Write a folder as a run leaves it, as far as boards read it; run.json comes last."""
    run = RunFolder(folder)
    for record in Progress().track("records", islice(records(n_documents), n_records), n_records):
        write_record(run.record_path(record.sae.id, record.task), record)
    run.write_manifest({"config": {}, "config_hash": "c" * 64})


def records(n_documents: int) -> Iterator[Record]:
    """Records without end, SAE by SAE and layer by layer."""
    layer = 0
    while True:
        for label, target, seed in product((*LABELS, *CONTROLS), TARGETS, SEEDS):
            yield from of_sae(label, target, seed, layer, n_documents)
        layer += 1


def of_sae(label: str, target: float, seed: int, layer: int, n_documents: int) -> Iterator[Record]:
    """The records of one SAE: better with more active latents, the architectures and layers a little apart."""
    draw = np.random.default_rng([len(label), ord(label[0]), int(target), seed, layer])
    control, site = label in CONTROLS, f"layer_{layer}.resid_post"
    quality = 0.1 * math.log(target) + 0.02 * (len(label) % 5) + 0.01 * layer - 0.5 * control + draw.normal(0, 0.01)
    sae = SAEDescription(
        id=file_name(f"{label}.{site}.w{WIDTH}.l0_{target:g}.seed{seed}"), arch=label, label=label, arch_version="1",
        d_in=256, d_sae=WIDTH, site=SiteDescription(name=site, layer=layer, kind="resid_post", path=f"layers.{layer}"),
        target_l0=target, coefficient=None, seed=seed, control=control, options={"k_aux": None},
        recipe={"lr": 0.002, "adam_eps": 1e-08, "betas": [0.9, 0.999], "lr_warmup": 0.05, "grad_clip": 0.01},
        training=Training(tokens_seen=1_000_000, seconds=60 + 5 * draw.random(), fingerprint="a" * 64),
        weights_sha256=f"{seed}" * 64,
    )  # fmt: skip
    for task, (measured_on, metrics) in TASKS.items():
        units = n_documents if measured_on == ON_TOKENS else N_UNITS
        weight = np.random.default_rng(units).integers(40, 160, units).astype(float)
        hard = np.random.default_rng(units + 1).normal(0, 0.05, units)
        sums, scores = {}, {}
        for name, (better, formula) in metrics.items():
            value = target * (1 + draw.normal(0, 0.01)) if name == "l0" else 0.5 + (quality * 0.3 if better else 0.0)
            value = 1 - value if better == "down" else value
            if formula:
                above, _, below = formula.removeprefix("1 - ").partition(" / ")
                sign = 1 - value if formula.startswith("1 - ") else value
                sums |= {above: ((sign * (1 + hard + draw.normal(0, 0.02, units))) * weight).tolist()}
                sums |= {below: weight.tolist()}
            scores[name] = Score(float(value), 0.01, int(weight.sum()), formula)
        counts = draw.geometric(0.002, WIDTH) - 1 if task == "feature_density" else None
        yield Record(
            task=task, task_version="1", failure=None, measured_on=measured_on, by_document=sums, scores=scores,
            metrics={name: Metric(name, better, "", f"{name} of {task}", headline=better is not None or name == "l0")
                     for name, (better, _) in metrics.items()},
            per_latent={} if counts is None else {"count": counts.tolist()},
            details={} if counts is None else {"n_tokens": int(weight.sum() * 100)},
            sae=sae, provenance=provenance(n_documents),
        )  # fmt: skip


def provenance(n_documents: int) -> Provenance:
    """Where all of it is from."""
    config: dict[str, Any] = {
        "archs": [{"name": label, "settings": {}} for label in LABELS], "l0s": [*TARGETS], "seeds": [*SEEDS],
        "batch_size": 4096, "buffer_tokens": 262_144, "dataset": "embedded", "model": "demo", "widths": [WIDTH],
        "preset": "short", "tokens": 1_000_000, "eval_tokens": 16_384, "device": "auto", "dtype": "auto",
    }  # fmt: skip
    return Provenance(
        model="demo", dataset="embedded", preset="short", eval_fingerprint="f" * 64, eval_documents=n_documents,
        eval_tokens=16_384, config_hash="c" * 64, config=config, model_sha256="b" * 64, lm_dtype="float32",
        versions={"sae-arch-bench": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"}, time="2026-11-27T00:00:00+00:00",
    )  # fmt: skip


# --- runs ------------------------------------------------------------------------------------------------------------

RUN = ("--model", "synthetic:small", "--arch", "topk", "jumprelu", "relu", "--width", "128", "--tokens", "16384",
       "--reuse", "1", "--batch-size", "1024", "--eval-tokens", "4096", "--seed", "0", "1", "2", "3", "4",
       "--quiet")  # fmt: skip
SAES_OF_AN_L0 = 15
MIDDLE = 13
"""The upper one of the two L0s in the middle: they are whole numbers, so many below it as from it on."""


def of_runs(n_saes: Sequence[int]) -> str:
    """What runs take, from the command to the board, in folders of their own."""
    rows, first = [], None
    for n in n_saes:
        n_l0s, over = divmod(n, SAES_OF_AN_L0)
        if over or n_l0s % 2 or not 0 < n_l0s < 2 * MIDDLE:
            raise UserError(
                f"--n-saes {n}: an L0 has {SAES_OF_AN_L0} SAEs, and there are pairs of them; give a multiple of "
                f"{2 * SAES_OF_AN_L0} below {2 * MIDDLE * SAES_OF_AN_L0}"
            )
        l0s = [MIDDLE + i - n_l0s // 2 for i in range(n_l0s)]  # of one mean, however many they are
        with tempfile.TemporaryDirectory() as folder:
            of = taken(*RUN, "--l0", *l0s, "--out", Path(folder) / "run")
        first = first or of.seconds / n
        rows.append([f"{n}", *cells(of), f"{of.seconds / n:.2f}", f"{of.seconds / n / first:.2f}"])
    headers = ["SAEs", "seconds", "processor, s", "peak, MB", "s an SAE", "of the first"]
    return f"    python bench.py {' '.join(RUN)} --l0 ...\n\n{table(rows, headers)}"


if __name__ == "__main__":
    sys.exit(app())
