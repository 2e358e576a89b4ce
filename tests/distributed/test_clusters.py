"""What stands in deploy/ runs: the SLURM script on two hosts, and the manifest for KubeRay has the fields it must have.

Two hosts are made of this one: each has a network, processes and a /tmp/ray of its own, as nodes of a cluster do, and
`srun` starts a command on both.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command import bench, flags
from test_end_to_end import records_of, weights_of, without_times

ROOT = Path(__file__).parents[2]
HOSTS = Path(__file__).with_name("two_hosts.sh")


@pytest.fixture
def hosts():
    """Nobody need be root, but the kernel has to let users make namespaces."""
    tried = subprocess.run(["bash", HOSTS, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"users cannot make networks here: {tried.stderr.strip()}")
    return ["10.213.77.1", "10.213.77.2"]


def on_path(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment in which these are the first programs that are found."""
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_the_slurm_script_starts_a_cluster_of_two_nodes_and_runs_a_sweep(
    hosts, gemma2_folder, corpus, at_work, tmp_path
):
    settings = {
        "--arch": ("relu", "topk"), "--l0": 6, "--model": gemma2_folder, "--layer": (1, 2), "--dataset": corpus,
        "--width": 48, "--tokens": 1500, "--batch-size": 130, "--buffer-tokens": 600, "--eval-tokens": 300,
        "--context-size": 32, "--kernels": "dense", "--screening": "off", "--device": "cpu",
    }  # fmt: skip
    command = [str(part) for part in flags(settings | {"--out": tmp_path / "run"})]
    environment = on_path(
        tmp_path,
        scontrol=f'[ "$*" = "show hostnames one,two" ] && printf "{hosts[0]}\\n{hosts[1]}\\n"',
        srun=f'while [[ $1 == --* ]]; do shift; done; exec bash {HOSTS} srun "$@"',
    )
    environment |= {"SLURM_JOB_NODELIST": "one,two", "SLURM_JOB_NUM_NODES": "2", "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_START": "--num-cpus=1 --object-store-memory=80000000"}
    environment |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "5"  # the second host's, when the first has ended
    environment.pop("RAY_TMPDIR", None)  # each host has its own
    done = subprocess.run(
        ["bash", HOSTS, "bash", ROOT / "deploy" / "slurm.sbatch", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("host 1: ") and "scripts.py" not in line]
    assert done.returncode == 0, "\n".join([*said, done.stderr])
    assert "host 2: On worker node" in done.stdout
    assert f"cluster at {hosts[0]}:6379: 2 nodes" in done.stdout + done.stderr
    assert bench(*flags(settings | {"--out": tmp_path / "one"}), "--quiet") == 0
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "one")
    records = [{name: without_times(r) for name, r in records_of(tmp_path / of).items()} for of in ("run", "one")]
    assert records[0] == records[1]


def test_the_slurm_script_asks_slurm_for_what_it_starts():
    text = (ROOT / "deploy" / "slurm.sbatch").read_text()
    options = {line.split()[1].partition("=")[0] for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"--nodes", "--ntasks-per-node", "--exclusive", "--gpus-per-node", "--time"} <= options
    assert subprocess.run(["bash", "-n", ROOT / "deploy" / "slurm.sbatch"]).returncode == 0


def test_the_manifest_is_a_job_that_ends_with_the_command():
    """The fields of KubeRay's RayJob, v1."""
    (job,) = yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) <= {
        "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "submissionMode", "backoffLimit",
        "rayClusterSpec", "runtimeEnvYAML", "activeDeadlineSeconds", "entrypointNumCpus",
    }  # fmt: skip
    assert spec["shutdownAfterJobFinishes"] is True
    program, *arguments = spec["entrypoint"].split()
    assert program == "sae-arch-bench"
    assert arguments[arguments.index("--on") + 1] == "ray"
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    out = Path(arguments[arguments.index("--out") + 1])
    for group in groups:
        assert isinstance(group["rayStartParams"], dict)
        (container,) = group["template"]["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        shared = next(name for path, name in mounts.items() if out.is_relative_to(path))
        assert "persistentVolumeClaim" in volumes[shared], "the run's folder outlives the pods, and all see it"
        assert container["image"] == groups[0]["template"]["spec"]["containers"][0]["image"], "the same versions"
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    workers = groups[1]
    assert workers["groupName"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
