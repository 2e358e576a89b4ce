"""A shared capture on a cluster of three nodes: the batches of one process, in bounded memory, whoever is killed."""

import os
import time
from pathlib import Path

import pytest
import ray
import torch
from command import bench, flags
from local_cluster import small, wait_for
from ray.cluster_utils import Cluster
from test_end_to_end import records_of, weights_of, without_times
from toy_capture import (
    N_STEPS,
    N_TOKENS,
    SEEDS,
    SERVING,
    digest,
    in_thread,
    keys_of,
    node,
    opener,
    read,
    toy_buffer,
    toy_model,
    toy_sites,
)

from sae_bench.distributed.shared_capture import SharedSource, start_capture
from sae_bench.training.initial_values import INIT_SAMPLE
from sae_bench.training.serving import Serving

SITES = toy_sites(toy_model())
FIRST, SECOND = SITES
CELLS = {"a": ([FIRST], SEEDS), "b": ([SECOND], [1]), "c": (SITES, [0])}
"""Three trainers; two of them share a stream."""

WINDOW = 3


@pytest.fixture(scope="module")
def cluster(at_work):
    """A head and two nodes that train; the node `capture` is where captures are, on the head."""
    tests = Path(__file__).parents[1]
    there = {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests / "runs", tests / "distributed")))}
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    made = Cluster(initialize_head=True, head_node_args=small(num_cpus=2, resources={"capture": 2}))
    try:
        for _ in range(2):
            made.add_node(**small(num_cpus=2, resources={"train": 2}))
        ray.init(address=made.address, log_to_driver=False, runtime_env={"env_vars": there})
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def expected(corpus, at_work):
    """What each trainer would be served if it captured for itself, and the facts at the end."""
    found = {}
    for name, (sites, seeds) in CELLS.items():
        buffer = toy_buffer(str(corpus), sites, seeds)
        samples = [buffer.sample(site, INIT_SAMPLE) for site in sites]
        digests = [digest(batch) for batch in buffer.batches()]
        found[name] = {
            "digests": digests,
            "state": buffer.state_dict(N_STEPS),
            "facts": buffer.facts(),
            "samples": samples,
        }
    return found


@pytest.fixture
def capture(cluster, corpus):
    started = start_capture(
        opener(str(corpus)),
        {name: keys_of(*cell) for name, cell in CELLS.items()},
        window=WINDOW,
        patience_s=30.0,
        num_cpus=1,
        resources={"capture": 1},
    )
    yield started
    ray.kill(started)


@ray.remote(num_cpus=0.5, resources={"train": 0.5}, scheduling_strategy="SPREAD", max_retries=0)
def trainer(capture, name, **how):
    return read(capture, name, *CELLS[name], **how)


def check(found, expected, name, first=0):
    assert found["digests"] == expected[name]["digests"][first:], name
    assert found["facts"] == expected[name]["facts"]


def test_trainers_on_other_nodes_are_served_what_they_would_capture(capture, expected):
    found = dict(zip(CELLS, ray.get([trainer.remote(capture, name) for name in CELLS]), strict=True))
    for name, of_trainer in found.items():
        check(of_trainer, expected, name)
        for x, y in zip(of_trainer["samples"], expected[name]["samples"], strict=True):
            assert torch.equal(x, y)
        state, own = of_trainer["state"], expected[name]["state"]
        assert set(state) == set(own)
        assert all(torch.equal(state["carried"][key], rows) for key, rows in own["carried"].items())
        assert state["scale"] == own["scale"]
    assert len({of_trainer["node"] for of_trainer in found.values()} | {node()}) > 1, "some were on other nodes"


def test_a_killed_trainer_goes_on_from_its_checkpoint_and_is_served_the_same(capture, expected):
    others = [trainer.remote(capture, name) for name in ("a", "c")]
    killed = ray.get(trainer.remote(capture, "b", until=12))
    ended, _ = ray.wait(others, num_returns=2, timeout=0.5)
    assert not ended, "the others wait for it, within its patience and the window"
    again = ray.get(trainer.remote(capture, "b", state=killed["state"]))
    assert killed["digests"] == expected["b"]["digests"][:12]
    check(again, expected, "b", first=12)
    for name, found in zip(("a", "c"), ray.get(others), strict=True):
        check(found, expected, name)


def test_a_killed_capture_goes_on_where_its_readers_are(capture, expected):
    waiting = [trainer.remote(capture, name) for name in ("a", "c")]
    held = ray.get(trainer.remote(capture, "b", until=20))  # so that the others are in the midst of it
    ray.kill(capture, no_restart=False)  # its process, at once
    last = trainer.remote(capture, "b", state=held["state"])
    for name, found in zip(("a", "c"), ray.get(waiting), strict=True):
        check(found, expected, name)
    check(ray.get(last), expected, "b", first=20)


def test_what_lies_in_the_object_store_is_bounded_by_the_window(cluster, capture, expected):
    """The stream is 69 batches of 4 keys. Two readers wait for a third, and the store does not fill."""
    wait_for(lambda: not used())  # what the tests before have left
    serving = Serving(SERVING.batch_size, SERVING.buffer_tokens, SERVING.reuse, [1])
    slow = SharedSource(capture, "b", toy_model(), N_TOKENS, [SECOND], serving).batches()
    threads = [in_thread(lambda name=name: read(capture, name, *CELLS[name])) for name in ("a", "c")]
    most = 0
    for _ in range(8):
        next(slow)
        wait_for(used)
        time.sleep(0.5)  # within the capture's patience; nodes report their stores' sizes now and then
        most = max(most, used())
    batch = SERVING.batch_size * sum(site.d_in for site in SITES) * len(SEEDS) * 4
    opening = 300 * sum(site.d_in for site in SITES) * 4
    assert batch <= most <= (WINDOW + 1) * batch + opening, "what follows the slowest, and what is about to join it"
    slow.close()
    for (thread, found), name in zip(threads, ("a", "c"), strict=True):
        thread.join(60)
        check(found[0], expected, name)


def used() -> int:
    """Bytes in the object stores of all nodes."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return int(total["object_store_memory"] - free["object_store_memory"])


def test_a_run_whose_cells_share_a_capture_makes_the_files_of_one_process(cluster, gemma2_folder, corpus, tmp_path):
    settings = {
        "--arch": "topk", "--l0": 6, "--seed": (0, 1), "--model": gemma2_folder, "--layer": (1, 2),
        "--dataset": corpus, "--width": 48, "--tokens": 2000, "--reuse": 3, "--batch-size": 60,
        "--buffer-tokens": 800, "--eval-tokens": 300, "--context-size": 32, "--checkpoint-every": 40,
    }  # fmt: skip
    assert bench(*flags(settings | {"--out": tmp_path / "one"}), "--quiet") == 0
    shared = settings | {"--out": tmp_path / "shared", "--on": cluster.address, "--capture": "shared"}
    assert bench(*flags(shared)) == 0
    assert "shared capture" in (tmp_path / "shared" / "logs" / "driver.log").read_text()
    assert weights_of(tmp_path / "shared") == weights_of(tmp_path / "one")
    records = [{name: without_times(r) for name, r in records_of(tmp_path / of).items()} for of in ("shared", "one")]
    assert records[0] == records[1]
