"""What every worker shares: JSON lines in, JSON lines out, and one timed training step at a time.

    {"do": "l0", "spec": {...}}     ->  {"l0": 63.9}          makes the subject if there is none yet
    {"do": "step", "spec": {...}}   ->  {"seconds": 0.21}     one whole training step on the next batch
    {"do": "drop", "spec": {...}}   ->  {}                    frees the subject's memory

Between messages a worker is blocked on its input and uses no processor. It runs in the peer's environment: torch and
safetensors are all it may import besides the peer.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import cycle
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

N_STEPS = 100_000
"""Length of the run that the steps pretend to be part of: nothing decays, dies or ends while it is timed."""

MID_TRAINING = 2000
"""Number of the first step timed, for trainers that do something else, or less, during their warm-up."""

LR = 1e-7
"""Learning rate: small enough that the L0 stays what it is made to be."""

QUANTILE_TOKENS = 4096
"""Tokens that quantiles are taken over."""


BY_K = ("topk", "batchtopk", "matryoshka")
"""Architectures that have their L0 by construction."""


def group_sizes(d_sae: int) -> list[int]:
    """Latents of each group of a Matryoshka SAE: F/32, F/16, F/8, F/4, and the rest."""
    sizes = [d_sae // part for part in (32, 16, 8, 4)]
    return [*sizes, d_sae - sum(sizes)]


@dataclass(frozen=True)
class Spec:
    """What is stepped: an architecture at a shape, made to have this L0 from its first step (k, for those `BY_K`)."""

    arch: str
    d_sae: int
    batch: int
    l0: float
    kernels: str = "auto"

    @property
    def share(self) -> float:
        """Share of the tokens that a latent fires on."""
        return self.l0 / self.d_sae

    def having(self, **changes: Any) -> "Spec":
        """The same but for some changes."""
        return replace(self, **changes)


class Subject(Protocol):
    """One SAE in training with all that its trainer keeps."""

    def step(self, x: Tensor) -> None:
        """One whole training step."""

    def l0(self, x: Tensor) -> float:
        """Mean number of active latents on a token."""


Make = Callable[[Tensor, Spec], Subject]
"""Makes a subject from scaled activations, d_in wide."""


def serve_steps(make: Make, packages: Sequence[str]) -> None:
    """Answer until the input ends."""
    setting = json.loads(sys.argv[1])
    torch.set_num_threads(setting["threads"])
    x = load_file(setting["activations"])["x"]
    subjects: dict[Spec, Subject] = {}
    batches: dict[Spec, Any] = {}

    def answer(message: Mapping[str, Any]) -> dict[str, Any]:
        spec = Spec(**message["spec"])
        if message["do"] == "drop":
            del subjects[spec], batches[spec]
            return {}
        if spec not in subjects:
            subjects[spec] = make(x, spec)
            batches[spec] = cycle(x[: len(x) // spec.batch * spec.batch].split(spec.batch))
        if message["do"] == "l0":
            with torch.no_grad():
                return {"l0": subjects[spec].l0(x[: spec.batch])}
        batch = next(batches[spec])
        start = time.perf_counter()
        subjects[spec].step(batch)
        return {"seconds": time.perf_counter() - start}

    serve(answer, packages)


def serve(answer: Callable[[Mapping[str, Any]], Mapping[str, Any]], packages: Sequence[str]) -> None:
    """Name the versions of some packages, then answer every message until the input ends."""
    print(json.dumps({"versions": {name: version(name) for name in packages}}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def as_message(do: str, spec: Spec) -> dict[str, Any]:
    """What asks a worker to do something with a subject."""
    return {"do": do, "spec": asdict(spec)}


def peak_gib() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@torch.no_grad()
def upper_quantile(x: Tensor, W_enc: Tensor, share: float) -> Tensor:
    """Per latent, the value of x W_enc that the given share of the tokens exceeds."""
    x = x[:QUANTILE_TOKENS]
    rank = max(1, len(x) - round(share * len(x)))
    return torch.cat([(block.T @ x.T).kthvalue(rank, dim=1).values for block in W_enc.split(4096, dim=1)])
