"""What a cluster costs and what it brings: a sweep in one process, on one worker of one core, and on two of them.

python benchmarks/cluster.py                              # demo model: writes results/cluster.md
python benchmarks/cluster.py --model FOLDER --tokens 2000 --layers 0 1 2 3  # a rehearsal

Every worker is a core, to which it and all that Ray starts beside it are bound; a run is a command, timed from its
start to its end, model and corpus loaded anew. Runs are interleaved. Not for a machine that does other work.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import ray
from common import RESULTS, application, interleave, ratio, scratch, table, write_result
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parent.parent
app = application(__doc__)

STORE_BYTES = 200 << 20
WAYS = {"one process": 1, "one worker": 1, "two workers": 2}
"""How the sweep is run, and on how many cores."""


@app.default
def main(
    *,
    model: str = "demo",
    dataset: str = "embedded",
    layers: Sequence[int] = (2, 3, 4, 5, 6, 7, 8, 9),
    archs: Sequence[str] = ("topk", "relu"),
    width: int = 2048,
    tokens: int = 32_768,
    eval_tokens: int = 4096,
    capture: str = "own",
    rounds: int = 3,
    out: Path = RESULTS,
) -> None:
    """Run the benchmark.

    Parameters
    ----------
    layers
        Decoder layers: a sweep has as many streams as these.
    capture
        As --capture of the command.
    rounds
        Interleaved runs of each way.
    out
        Folder of the result.
    """
    settings: dict[str, Sequence[object]] = {
        "--model": [model], "--dataset": [dataset], "--layer": layers, "--arch": archs, "--width": [width],
        "--tokens": [tokens], "--eval-tokens": [eval_tokens], "--device": ["cpu"], "--kernels": ["dense"],
        "--screening": ["off"], "--tasks": ["delta_lm_loss", "reconstruction"],
    }  # fmt: skip
    command = [str(part) for flag, values in settings.items() for part in (flag, *values)]
    seconds = interleave({way: lambda way=way: timed(way, command, capture) for way in WAYS}, rounds, 0)
    rows = [[way, f"{min(s):.0f}", f"{sorted(s)[len(s) // 2]:.0f}", f"{max(s):.0f}"] for way, s in seconds.items()]
    overhead = ratio(seconds["one worker"], seconds["one process"])
    speedup = ratio(seconds["one worker"], seconds["two workers"])
    write_result(
        out,
        "Cluster",
        [
            f"{len(layers) * len(archs)} SAEs at {len(layers)} sites of {model}, width {width}, {tokens:,} tokens, "
            f"--capture {capture}. Seconds of a whole command, {rounds} interleaved runs of each.",
            table(rows, ["way", "least", "median", "most"]),
            f"One worker takes {overhead} of one process; two workers are {speedup} times as fast as one.",
        ],
        {"ray": ray.__version__},
        1,
    )


def timed(way: str, command: Sequence[str], capture: str) -> float:
    """Seconds that the command takes; the cluster is there before it begins."""
    run = scratch() / "cluster-run"
    shutil.rmtree(run, ignore_errors=True)
    cores = sorted(os.sched_getaffinity(0))[: WAYS[way]]
    # Ray's workers are nice to others unless told otherwise; one process is not.
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with ExitStack() as stack:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # what is started from now on is bound to them
        stack.callback(os.sched_setaffinity, 0, before)
        where: list[str] = []
        if way != "one process":
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES})
            stack.callback(cluster.shutdown)
            for _ in range(WAYS[way]):
                cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
            where = ["--on", cluster.address, "--capture", capture]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, ROOT / "bench.py", *command, *where, "--out", run, "--quiet"],
            capture_output=True,
            text=True,
        )
        took = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{way}: {done.stderr[-2000:]}")
    return took


if __name__ == "__main__":
    sys.exit(app())
