"""The suite `demo-all` on a cluster of three nodes, one of which is killed on the way, and then the driver.

python benchmarks/demo_all_on_ray.py                       # writes results/demo_all_on_ray.md
python benchmarks/demo_all_on_ray.py --config my-suite.toml

A head without cores and two nodes of one core each. When the first checkpoints are there a node gets SIGKILL, and
another takes its place; after more of them the driver gets SIGKILL, and the command is given once more. Then every file
of the run is held against those of the same command in one process, checkpoints and logs apart: byte by byte, or,
for what is written as JSON, value by value without times. A run in one process that is there already is taken.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import RESULTS, application, scratch, write_result

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "distributed"))

import ray  # noqa: E402
from local_cluster import local_cluster, more_checkpoints, small, wait_for, workers_at_cells  # noqa: E402

TIMES = {"time", "seconds", "evaluation_seconds", "checkpoint_every", "seal"}
"""What two runs differ in: times, how often there is a checkpoint, and the digests of files that have them."""

BESIDE = {"checkpoints", "logs", "cells.json", ".lock"}
"""Files that say how a run was worked on."""

app = application(__doc__)


@app.default
def main(*, config: str = "demo-all", every: str = "4", folder: Path | None = None, out: Path = RESULTS) -> None:
    """Run the demonstration.

    Parameters
    ----------
    every
        Steps between checkpoints on the cluster.
    folder
        Where the two runs are kept; without it, in the benchmarks' scratch folder.
    out
        Folder of the result.
    """
    os.environ |= {"OMP_NUM_THREADS": "1"}
    kept = (folder or scratch() / "demo-all").absolute()
    one, many = kept / "one", kept / "many"
    shutil.rmtree(many, ignore_errors=True)
    alone = ended(begin(config, one))
    with local_cluster(2) as cluster:
        start = time.perf_counter()
        on = ["--on", cluster.address, "--checkpoint-every", every]
        driver = begin(config, many, *on)
        more_checkpoints(many, 2)()
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        cluster.add_node(**small())
        more_checkpoints(many, 3)()
        driver.kill()
        assert driver.wait() == -signal.SIGKILL, "the driver had ended before"
        wait_for(lambda: not workers_at_cells())
        before = time.perf_counter() - start
        again = ended(begin(config, many, *on))
    compared = compare(one, many)
    said = "".join(path.read_text() for path in sorted((many / "logs").iterdir()))
    write_result(
        out,
        "demo-all on Ray, with a node and the driver killed",
        [
            f"{compared} files of the run on the cluster ({len(list(many.glob('saes/*')))} SAEs, "
            f"{len(list(many.glob('records/*.json')))} records) are those of the run in one process. On the way cells "
            f"began again {said.count('begins again')} times, and went on from a checkpoint "
            f"{said.count('going on after step')} times.",
            f"In one process {alone:.0f} s; on two workers {before:.0f} s until the driver was killed, and {again:.0f} "
            "s more.",
        ],
        {"ray": ray.__version__},
        1,
    )


def begin(config: str, run: Path, *more: str) -> subprocess.Popen[bytes]:
    """The command, as a process of its own."""
    command = [sys.executable, ROOT / "bench.py", "--config", config, "--out", run, *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def ended(process: subprocess.Popen[bytes]) -> float:
    """Seconds until it has ended, as it should."""
    start = time.perf_counter()
    if process.wait():
        sys.exit(f"the command ended with {process.returncode}")
    return time.perf_counter() - start


def compare(one: Path, many: Path) -> int:
    """How many files were found to be alike; ends with those that are not."""
    names = files_of(one)
    different = sorted(names ^ files_of(many)) or [
        name for name in sorted(names) if content(one / name) != content(many / name)
    ]
    if different:
        sys.exit(f"{len(different)} files differ: {', '.join(different[:10])}")
    return len(names)


def files_of(run: Path) -> set[str]:
    found = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] not in BESIDE}


def content(path: Path) -> Any:
    """A file's bytes, or its values but for times."""
    return without_times(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(app())
