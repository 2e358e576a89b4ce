"""A run on a cluster makes the files that one process makes, whatever happens to nodes, workers, head and driver."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from cluster_runs import FATAL, MENDED, PATIENT, same
from command import bench, files, flags
from local_cluster import (
    WAIT_S,
    checkpoints,
    kill_workers,
    local_cluster,
    meanwhile,
    more_checkpoints,
    small,
    wait_for,
    workers_at_cells,
)
from ray.cluster_utils import Cluster
from test_end_to_end import records_of, weights_of
from warm import Command

from sae_bench.cli.main import main
from sae_bench.distributed import crew as crew_module
from sae_bench.distributed.courier import Courier, Inbox
from sae_bench.distributed.desk import Desk
from sae_bench.distributed.siblings import compared_together
from sae_bench.records.run_folder import RunFolder
from sae_bench.saes.save import write_training


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    """Two sites, two seeds; chance, so that random SAEs are collected beside the trained ones.

    Where it is `slow`, a step of `patient` lasts long enough, on any machine, for what happens in a test to happen
    while cells train.
    """
    plugin = at_work / "patient.py"
    plugin.write_text(PATIENT.format(slow=str(at_work / "slow")))
    return {
        "--arch": ("patient", "relu"), "--plugin": plugin, "--l0": 6, "--seed": (0, 1), "--model": gemma2_folder,
        "--layer": (1, 2), "--dataset": corpus, "--width": 48, "--tokens": 2000, "--reuse": 3, "--batch-size": 60,
        "--buffer-tokens": 800, "--eval-tokens": 300, "--context-size": 32, "--checkpoint-every": 10,
        "--latents": 3, "--interp-tokens": 400,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings, at_work) -> Path:
    """The run in one process."""
    assert bench(*flags(settings | {"--out": at_work / "whole"}), "--chance", "--quiet") == 0
    return at_work / "whole"


@pytest.fixture
def slow(at_work) -> Iterator[Path]:
    """The file that makes `patient` take its time."""
    path = at_work / "slow"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def cluster(at_work) -> Iterator[Cluster]:
    """This process is its driver all the time, so that workers need not begin anew for every run."""
    with local_cluster(2) as found:
        ray.init(found.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield found
        finally:
            ray.shutdown()


def command(settings, out: Path, address: str) -> list[object]:
    return [*flags(settings | {"--out": out, "--on": address}), "--chance"]


def test_a_run_on_a_cluster_makes_the_files_of_one_process(settings, whole, cluster, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    together = []

    def noted(*of):
        together.append(tuple(parts := compared_together(*of)))
        return parts

    monkeypatch.setattr(crew_module, "compared_together", noted)
    assert bench(*command(settings, out, cluster.address)) == 0
    same(out, whole)
    said = capsys.readouterr().err
    settled = "3 nodes; 2 cells at once, GPUs of each: 0, cores: 1; every node sees the run's folder"
    assert f"cluster at {cluster.address}: {settled}" in said
    cells = RunFolder(out).cells()
    assert len(cells) > 1, "one cell would show nothing"
    assert f"cells: {len(cells)} done in" in said
    assert sorted(sae for saes in cells.values() for sae in saes) == sorted(weights_of(whole))
    assert {path.stem for path in (out / "logs").iterdir()} == {*cells, "driver"}
    assert bench("verify", out, "--quiet") == 0
    before = files(out)
    lost = {f"records/{path.name}" for path in (out / "records").glob("*layer_1*.stability.json")}
    assert len(lost) == 4, "half of what is said of two seeds"
    for name in lost:
        (out / name).unlink()
    assert bench(*command(settings, out, cluster.address)) == 0, "the same command again does what is missing alone"
    same(out, whole)
    apart = [sorted({name.partition(".")[0] for name in part}) for part in together[1]]
    assert ([len(part) for part in together[0]], apart) == ([4, 4], [["patient"], ["relu"]])
    kept = {name for name in before if not name.startswith("logs/")} - lost
    assert {name for name, content in files(out).items() if name in kept and content != before[name]} == set()


def test_a_growth_that_cannot_be_leaves_the_run_as_it_was(settings, whole, cluster, tmp_path, capsys):
    """Its text is read before run.json says that the run is evaluated on more: else no fewer would be taken again."""
    run = shutil.copytree(whole, tmp_path / "run")
    write_training(next((run / "saes").iterdir()), fingerprint="0" * 64)
    before = (run / "run.json").read_bytes()
    assert bench(*command(settings | {"--eval-tokens": 400}, run, cluster.address)) == 2
    assert "does not give the tokens that" in capsys.readouterr().err
    assert (run / "run.json").read_bytes() == before
    assert bench(*command(settings | {"--interp-tokens": 1_000_000, "--eval-tokens": 400}, run, cluster.address)) == 2
    assert "evaluation tokens, fewer than" in capsys.readouterr().err
    assert (run / "run.json").read_bytes() == before


def test_a_worker_and_a_node_are_killed_on_the_way(settings, whole, cluster, slow, tmp_path, capsys):
    out = tmp_path / "run"
    lost = cluster.add_node(**small())

    def kill_a_node() -> None:
        cluster.remove_node(lost, allow_graceful=False)

    with meanwhile(more_checkpoints(out, 2), kill_workers, more_checkpoints(out, 2), kill_a_node):
        assert bench(*command(settings, out, cluster.address)) == 0
    assert "begins again: WorkerCrashedError" in capsys.readouterr().err
    assert "going on after step" in "".join(path.read_text() for path in (out / "logs").iterdir())
    same(out, whole)


def test_files_come_through_the_object_store_where_nodes_see_no_folder(
    settings, whole, cluster, slow, tmp_path, monkeypatch
):
    """Those of cells, and those of all seeds of a site for what is said of two."""
    out = tmp_path / "run"
    monkeypatch.setattr(crew_module, "slots_of", apart(crew_module.slots_of))
    with meanwhile(more_checkpoints(out, 2), kill_workers):
        assert bench(*command(settings, out, cluster.address), "--quiet") == 0
    same(out, whole)
    logs = "".join(path.read_text() for path in (out / "logs").iterdir())
    assert "going on after step" in logs, "its checkpoint came back to it"


def apart(slots_of):
    """As `slots_of`, of nodes that see no folder of the driver's."""
    from dataclasses import replace

    return lambda *arguments: replace(slots_of(*arguments), shared=False)


def test_a_cell_that_always_dies_is_on_record_and_the_others_go_on(settings, whole, cluster, tmp_path, capsys):
    plugin = tmp_path / "fatal.py"
    plugin.write_text(FATAL)
    out = tmp_path / "run"
    few = settings | {"--arch": ("topk", "fatal"), "--seed": 0, "--plugin": plugin}
    few |= {"--tasks": ("reconstruction", "autointerp"), "--layer": 1, "--checkpoint-every": 1}
    assert bench(*command(few, out, cluster.address)) == 1
    assert "FAILED fatal" in capsys.readouterr().out
    records = records_of(out)
    reasons = {record["failure"] for record in records.values() if record["sae"]["arch"] == "fatal"}
    assert len(reasons) == 1
    assert "WorkerCrashedError" in reasons.pop()
    good = [record for record in records.values() if record["sae"]["arch"] == "topk"]
    assert good
    assert not [record for record in good if record["failure"]], "in a cell of its own"


def test_a_driver_stays_one_and_takes_no_other_cluster(settings, whole, cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")  # by which it might have been joined
    assert bench(*command(settings, whole, "ray")) == 0
    assert f"cluster at {cluster.address}" in capsys.readouterr().err
    assert ray.is_initialized(), "who was a driver before the run is one after it"
    assert bench(*command(settings, tmp_path / "run", "127.0.0.1:9")) == 2
    assert f"is a driver of {cluster.address} already" in capsys.readouterr().err


def test_nobody_works_on_a_run_that_an_error_has_ended(settings, whole, cluster, slow, tmp_path, monkeypatch):
    """The connection is kept, and with it whatever is not told to end."""
    out = tmp_path / "run"

    def fail(*_) -> None:
        if checkpoints(out) and workers_at_cells():
            raise ZeroDivisionError

    monkeypatch.setattr(crew_module.View, "show", fail)
    with pytest.raises(ZeroDivisionError):
        main([str(part) for part in command(settings, out, "ray")])
    assert not workers_at_cells()


def test_workers_that_are_there_take_a_plugin_as_it_is_now(settings, cluster, tmp_path, capsys):
    """The language model of a run is not kept for the next, nor is anything else of it."""
    plugin = tmp_path / "mended.py"
    few = {name: value for name, value in settings.items() if name not in ("--latents", "--interp-tokens")}
    few |= {"--arch": "mended", "--seed": 0, "--plugin": plugin, "--tasks": "reconstruction", "--kernels": "dense"}
    few |= {"--screening": "off", "--on": cluster.address}
    plugin.write_text(MENDED.format(what="raise ValueError('not yet')"))
    assert bench(*flags(few | {"--out": tmp_path / "run"})) == 1
    assert capsys.readouterr().out.count("not yet") == 2, "in both workers"
    plugin.write_text(MENDED.format(what="super().after_step(step)"))
    assert bench(*flags(few | {"--out": tmp_path / "again"})) == 0


def test_other_versions_on_a_node_are_named_before_anything_begins(settings, cluster, tmp_path, capsys):
    (tmp_path / "scipy-0.0.1.dist-info").mkdir()
    (tmp_path / "scipy-0.0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: scipy\nVersion: 0.0.1\n")
    node = cluster.add_node(**small(env_vars={"PYTHONPATH": str(tmp_path)}))
    try:
        assert bench(*command(settings, tmp_path / "run", cluster.address)) == 2
    finally:
        cluster.remove_node(node)
    said = capsys.readouterr().err
    assert "has other versions (scipy 0.0.1 there, " in said
    assert files(tmp_path / "run") == {}


def killed(settings, out: Path, cluster: Cluster, kill: Callable[[Command], None]) -> int:
    """A run whose driver is a process of its own, until `kill` has killed something while cells train.

    Returns:
        Its exit code.
    """
    process = Command([str(part) for part in (*command(settings, out, cluster.address), "--quiet")])
    try:
        more_checkpoints(out, 1)()
        kill(process)
        process.join(WAIT_S)
        assert process.exitcode is not None, "it never ended"
        return process.exitcode
    finally:
        process.kill()


def test_a_run_whose_driver_is_killed_and_then_stopped_goes_on_without_a_cluster(
    settings, whole, cluster, slow, tmp_path, capsys
):
    out = tmp_path / "run"
    assert killed(settings, out, cluster, lambda process: process.kill()) == -signal.SIGKILL
    wait_for(lambda: not workers_at_cells())
    before = checkpoints(out)
    with meanwhile(more_checkpoints(out, 1), lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert bench(*command(settings, out, cluster.address)) == 130
    said = capsys.readouterr().err
    assert "stopping: the cells write their checkpoints" in said
    assert "go on with" in said
    wait_for(lambda: not workers_at_cells())
    after = checkpoints(out) - before
    assert [at for at in after if int(at.partition("/")[2]) % 10], "more than those that were due"
    slow.unlink()
    assert bench(*flags(settings | {"--out": out}), "--chance") == 0
    assert "going on after step" in capsys.readouterr().err
    same(out, whole)


def test_the_head_is_lost_and_the_command_given_again_on_a_new_one(
    settings, whole, cluster, slow, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "10")  # a driver's patience with a head that is gone
    with local_cluster(1) as lost:
        held: list[int] = []

        def lose_the_head(_: object) -> None:
            held.extend(workers_at_cells())
            for worker in held:
                os.kill(worker, signal.SIGSTOP)  # else it might be done before Ray gives the head up
            lost.head_node.kill_gcs_server()

        code = killed(settings, out, lost, lose_the_head)
        assert held, "a cell was at work"
        assert code != 0, "the driver ends, with an error"
        for worker in held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    assert not (out / "leaderboard.md").exists()
    slow.unlink()
    assert bench(*command(settings, out, cluster.address), "--quiet") == 0
    same(out, whole)


def test_a_file_larger_than_the_object_store_arrives(cluster, tmp_path):
    content = os.urandom(1 << 20) * 120
    (tmp_path / "large").write_bytes(content)
    desk = ray.remote(Desk).options(num_cpus=0).remote()
    inbox = Inbox(RunFolder(tmp_path / "run"), desk)
    pool = ThreadPoolExecutor(1)
    bringing = pool.submit(Courier(tmp_path, desk).bring)
    pool.shutdown(wait=False)
    wait_for(lambda: inbox.take() is not None and bringing.done())
    bringing.result()
    assert (tmp_path / "run" / "large").read_bytes() == content


def test_settings_of_the_run_in_one_process_are_those_of_the_cluster(whole):
    """What `same` compares is worth comparing."""
    manifest = json.loads((whole / "run.json").read_text())
    assert len(manifest["saes"]) == 8
    compared = list((whole / "records").glob("*.stability.json"))
    assert len(compared) == 8
    assert all(json.loads(record.read_text())["scores"] for record in compared)
    assert manifest["kernels"]
