"""A Ray cluster: joined or started, its nodes' versions held against this process's, and how many cells it works on."""

import importlib.metadata
import logging
import os
import platform
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sae_bench.errors import UserError
from sae_bench.runs.provenance import PACKAGES, own_version
from sae_bench.signals import stop_signals

log = logging.getLogger(__name__)

ANSWER_S = 10
"""Seconds that an address has to answer in: once to be reached, and once in Ray's protocol."""

NODES_S = 300
"""Seconds that the nodes have to say their versions in: a new process on each has to import this package."""

CLIENT = "ray://"


@dataclass(frozen=True)
class Slots:
    """How many cells a cluster works on at once, and what each takes of it."""

    n: int
    n_cpus: int
    n_gpus: int
    n_bytes: int
    """Memory of the node, for each."""
    shared: bool
    """Whether every node sees the run's folder."""
    nodes: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """For a Ray task that is a cell, or does what a cell does."""
        return {"num_cpus": self.n_cpus, "num_gpus": self.n_gpus}


@contextmanager
def joined(on: str) -> Iterator[str]:
    """Be a driver of the cluster that `--on` names: `ray`, `ray://HOST:PORT`, or the HOST:PORT of its head.

    `ray` is the cluster of RAY_ADDRESS, else the one that runs on this machine, else a new one that ends with this
    block. A process that is a driver already, as a notebook may be, stays one, of its cluster. Yield its address.

    Raises:
        UserError: there is no such address, nobody answers there, it is a cluster of other versions, or this process
            is a driver of another one.
    """
    if ray.is_initialized():
        with stop_signals():
            yield _connected(on)
        return
    address = os.environ.get("RAY_ADDRESS") if on == "ray" else on
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # a cell is the work here, not something beside it
    if address and address not in ("auto", "local"):
        _check_answer(address)
    try:
        ray.init(address or None, logging_level=logging.ERROR, log_to_driver=False)
    except (RuntimeError, ConnectionError, ValueError) as error:
        raise UserError(
            f"--on {on}: Ray cannot join {address or 'or start a cluster'}: {error}; see that it runs, with the same "
            "versions as here"
        ) from None
    try:
        with stop_signals():  # Ray has put its own answer to SIGTERM in the place of ours
            yield address if address and address.startswith(CLIENT) else ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def _connected(on: str) -> str:
    """The address of the cluster that this process is a driver of, if it is the one that `--on` names."""
    found: str = ray.get_runtime_context().gcs_address
    if on not in ("ray", found):
        raise UserError(
            f"--on {on}: this process is a driver of {found} already: write --on ray, or ray.shutdown() before"
        )
    return found


def _check_answer(address: str) -> None:
    """Raise UserError unless a server of Ray's protocol answers: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix(CLIENT).rpartition(":")
    if not colon or not host or not port.isdigit():
        raise UserError(f'--on "{address}" is no address: write HOST:PORT, ray://HOST:PORT, or ray')
    remedy = "see that the cluster runs (ray status) and that its port is open, or leave --on out"
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--on {address} does not answer ({error}): {remedy}") from None
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return  # whether it speaks Ray's protocol can be asked with its certificates alone
    import grpc

    with grpc.insecure_channel(f"{host}:{port}") as channel:
        ready = grpc.channel_ready_future(channel)
        try:
            ready.result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            raise UserError(f"--on {address} does not answer as Ray does: {remedy}") from None
        finally:
            ready.cancel()


def versions() -> dict[str, str]:
    """What has to be the same on all nodes."""
    packages = {name: importlib.metadata.version(name) for name in (*PACKAGES, "ray")}
    return {"python": platform.python_version(), **packages, **own_version()}


@dataclass(frozen=True)
class Lock:
    """The file by which the driver holds the run's folder: who sees what it says sees the folder."""

    path: str
    content: str

    @staticmethod
    def of(run: Path) -> "Lock":
        path = (run / ".lock").absolute()
        return Lock(str(path), path.read_text())

    @property
    def is_seen(self) -> bool:
        path = Path(self.path)
        return path.is_file() and path.read_text() == self.content


def _look(lock: Lock) -> tuple[dict[str, str], bool]:
    """On a node: its versions, and whether it sees the run's folder."""
    return versions(), lock.is_seen


def slots_of(device: str, lock: Lock) -> Slots:
    """See that all nodes have the driver's versions, and find out how many cells they take.

    A cell takes a GPU where the cluster has any, unless --device is "cpu"; else as many cores as torch has threads
    here.

    Raises:
        UserError: versions differ, a node does not answer, or none has what a cell takes.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: on a cluster Ray chooses which; write cuda, cpu or auto")
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    seen = _compare(nodes, lock)
    nodes = {name: node for name, node in nodes.items() if name in seen}
    shared = all(seen.values())
    gpus = {name: int(node["Resources"].get("GPU", 0)) for name, node in nodes.items()}
    cpus = {name: int(node["Resources"].get("CPU", 0)) for name, node in nodes.items()}
    memory = {name: int(node["Resources"].get("memory", 0)) for name, node in nodes.items()}
    threads = torch.get_num_threads()
    names = tuple(nodes)
    if device != "cpu" and any(gpus.values()):
        per_gpu = min(cpus[name] // n for name, n in gpus.items() if n)
        share = min(memory[name] // n for name, n in gpus.items() if n)
        return Slots(sum(gpus.values()), max(1, min(threads, per_gpu)), 1, share, shared, names)
    if device == "cuda":
        raise UserError("--device cuda: no node of the cluster has a GPU; leave it out, or add nodes that have")
    cells = {name: count // threads for name, count in cpus.items() if count >= threads}
    if not cells:
        raise UserError(
            f"a cell takes {threads} cores, as many as torch has threads here, and the largest node has "
            f"{max(cpus.values(), default=0)}: set OMP_NUM_THREADS lower"
        )
    share = min(memory[name] // n for name, n in cells.items())
    return Slots(sum(cells.values()), threads, 0, share, shared, names)


def _compare(nodes: Mapping[str, Mapping[str, Any]], lock: Lock) -> dict[str, bool]:
    """See that versions agree on all nodes, and return which see the run's folder, without those lost meanwhile."""
    look = ray.remote(_look)
    asked = {
        look.options(
            num_cpus=0,
            name="versions",
            scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False),
        ).remote(lock): name
        for name in nodes
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=NODES_S)
    if silent:
        where = nodes[asked[silent[0]]]["NodeManagerHostname"]
        raise UserError(f"node {where} of the cluster does not answer within {NODES_S} s: take it out, or mend it")
    found = {asked[one]: _agreed(nodes[asked[one]]["NodeManagerHostname"], one) for one in answered}
    return {name: sees for name, sees in found.items() if sees is not None}


def _agreed(where: str, reference: Any) -> bool | None:
    """Whether a node sees the folder, once its versions are the driver's; None where the node was lost meanwhile."""
    try:
        theirs, sees = ray.get(reference)
    except ray.exceptions.TaskUnschedulableError:
        return None
    except ray.exceptions.RayError as error:
        raise UserError(f"node {where} of the cluster cannot run this package: {error.__cause__ or error}") from None
    check_versions(theirs, where)
    return bool(sees)


def check_versions(theirs: Mapping[str, str], where: str, own: Mapping[str, str] | None = None) -> None:
    """Raise UserError if a node's versions are others than the driver's."""
    own = versions() if own is None else own
    differ = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
    if differ:
        listed = ", ".join(f"{name} {theirs.get(name)} there, {own.get(name)} here" for name in differ)
        raise UserError(f"node {where} has other versions ({listed}): install the same on all nodes")
