"""Where a number comes from: versions, hardware and code, as every record repeats them."""

import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_bench._version import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy", "scipy")


def environment(device: torch.device) -> dict[str, Any]:
    """Library versions, device and code version; no host name, no path, no user."""
    return {
        "versions": _versions(),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} cpu",
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled() or device.type == "cpu",
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Of what was imported: they stay while the process does, and git takes long to ask."""
    return {name: importlib.metadata.version(name) for name in PACKAGES} | own_version()


def changed_environment(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of two `environment`s differs, as people read it: `torch 2.12.0 -> 2.13.0, threads 8 -> 4`."""
    then, here = ({**{k: v for k, v in of.items() if k != "versions"}, **of["versions"]} for of in (was, now))
    names = [name for name in {**then, **here} if then.get(name) != here.get(name)]
    return ", ".join(f"{name} {then.get(name, 'none')} -> {here.get(name, 'none')}" for name in names)


def own_version() -> dict[str, str]:
    """This package's version and, in a checkout, the commit of the package itself and whether files were changed."""
    root = Path(__file__).parents[2]
    versions = {"sae-arch-bench": __version__}
    if (root / ".git").exists() and (commit := _git(root, "rev-parse", "HEAD")):
        dirty = _git(root, "status", "--porcelain", "--", "sae_bench", "architectures", "tasks")
        versions["commit"] = commit + ("+changes" if dirty else "")
    return versions


def _git(root: Path, *arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""  # no git, or a repository without a commit: the package version has to do
