"""Clusters of several nodes on this machine, and what may happen to them."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.cluster_utils import Cluster

STORE_BYTES = 80 << 20
"""The least that Ray takes for a node's object store."""

WAIT_S = 240
"""Longer than anything here takes on a machine that does much else."""


def small(**more: object) -> dict[str, object]:
    """What a node of one core is made of."""
    return {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False, **more}


@contextmanager
def local_cluster(n_nodes: int) -> Iterator[Cluster]:
    """A head without cores, so that no cell dies with it alone, and nodes of one core each; all end with the block."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ |= {"RAY_local_fs_capacity_threshold": "1"}  # else no store is emptied to a disk that is 95% full
    cluster = Cluster(initialize_head=True, head_node_args=small(num_cpus=0))
    try:
        for _ in range(n_nodes):
            cluster.add_node(**small())
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def meanwhile(*events: Callable[[], None]) -> Iterator[None]:
    """Let these happen, one after the other, while the block is under way; an event that fails fails the test."""
    failures: list[BaseException] = []

    def happen() -> None:
        try:
            for event in events:
                event()
        except BaseException as error:  # noqa: BLE001 (raised again below)
            failures.append(error)

    thread = threading.Thread(target=happen, daemon=True)
    thread.start()
    yield
    thread.join(timeout=WAIT_S)
    assert not thread.is_alive(), "it never came to this"
    if failures:
        raise failures[0]


def wait_for(what: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end, "it never came to this"
        time.sleep(0.02)


def checkpoints(run: Path) -> set[str]:
    """Whole checkpoints of a run's cells, as cell/step."""
    return {f"{p.parent.parent.name}/{p.parent.name}" for p in run.glob("checkpoints/*/*/checkpoint.json")}


def more_checkpoints(run: Path, n: int) -> Callable[[], None]:
    """An event: so many checkpoints are written that were not there when it began."""

    def written() -> None:
        seen = known = checkpoints(run)

        def enough() -> bool:
            nonlocal seen
            seen = seen | checkpoints(run)
            return len(seen - known) >= n

        wait_for(enough)

    return written


def workers_at_cells() -> list[int]:
    """Workers of our nodes that work on cells at this moment: they are called by the names of their SAEs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes()
            if line.startswith(b"ray::") and b".seed" in line and os.getpid() in ancestors(int(process.name)):
                found.append(int(process.name))
    return found


def ancestors(process: int) -> list[int]:
    """Its parent, and so on."""
    parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return [parent, *ancestors(parent)] if parent > 1 else []


def kill_workers() -> None:
    """An event: SIGKILL to all that work on cells, as the kernel sends it where memory is out."""
    wait_for(workers_at_cells)
    for worker in workers_at_cells():
        os.kill(worker, signal.SIGKILL)
