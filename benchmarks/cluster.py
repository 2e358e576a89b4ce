"""What Ray costs, what a second worker gains, and whether the plan was right.

    python benchmarks/cluster.py

One sweep, with one thread everywhere: in one process, on a cluster of one worker, and of two. Wall times are those of
whole commands, from the first import to the board, in turn, so that what else the machine does meets all of them. What
the cells alone take the driver says: a cluster starts once a run, and cells may be long.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from common import RESULTS, application, table, write_result
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parent.parent
SWEEP = (
    "--arch", "topk", "jumprelu", "--l0", "16", "32", "--layer", "4", "8", "--width", "2048", "--tokens", "32768",
    "--eval-tokens", "4096", "--tasks", "delta_lm_loss", "reconstruction",
)  # fmt: skip

app = application(__doc__)


def command(out: Path, on: str | None) -> tuple[float, str]:
    """Seconds of a whole run, and what it said."""
    words = [sys.executable, str(ROOT / "bench.py"), *SWEEP, "--out", str(out), *(["--on", on] if on else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    start = time.monotonic()
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    return time.monotonic() - start, done.stderr


def working_seconds(said: str) -> float:
    """How long the cells took, by what the driver says at their end."""
    found = re.search(r"cells: .* in (\d+) s", said)
    assert found, said
    return float(found[1])


def on_cluster(out: Path, n_workers: int) -> tuple[float, float]:
    """Seconds of the whole command, and of its cells; the cluster has a core for each worker."""
    nodes = {"include_dashboard": False, "object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **nodes})
    try:
        for _ in range(n_workers):
            cluster.add_node(num_cpus=1, **nodes)
        seconds, said = command(out, cluster.address)
    finally:
        cluster.shutdown()
    return seconds, working_seconds(said)


@app.default
def main(*, rounds: int = 3) -> None:
    """Time the three ways, `rounds` times each."""
    times: dict[str, list[float]] = {"one process": [], "one worker": [], "two workers": []}
    cells: dict[str, list[float]] = {"one worker": [], "two workers": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            times["one process"].append(command(Path(folder) / "alone", None)[0])
            for n, name in enumerate(cells, 1):
                whole, working = on_cluster(Path(folder) / name.replace(" ", "-"), n)
                times[name].append(whole)
                cells[name].append(working)
    median = {name: statistics.median(of) for name, of in times.items()}
    working = {name: statistics.median(of) for name, of in cells.items()}
    rows = [[name, f"{median[name]:.0f}", f"{working[name]:.0f}" if name in working else ""] for name in times]
    parts = [
        table(rows, ["", "whole command, s", "its cells, s"]),
        f"Ray's overhead: {median['one worker'] / median['one process'] - 1:.0%} of the whole command. Two workers: "
        f"{working['one worker'] / working['two workers']:.2f} times one, in the cells.",
    ]
    write_result(RESULTS, "A cluster on one machine", parts, {"ray": version("ray")}, 1)


if __name__ == "__main__":
    app()
