"""The directions of a world's features: random, then pushed apart.

Shapes: N features, D width.
"""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from sae_bench.records.files import digest_of, write_bytes
from sae_bench.records.kept import kept
from sae_bench.records.names import cache_folder
from sae_bench.synthetic.settings import WorldSettings

ROWS_AT_ONCE = 2048


def seed_for(*what: object) -> int:
    """A seed of its own for what is named."""
    return int(hashlib.sha256(" ".join(map(str, what)).encode()).hexdigest()[:15], 16)


def generator_for(*what: object) -> torch.Generator:
    """Random numbers of their own for what is named, on the CPU, which draws the same for every device."""
    return torch.Generator().manual_seed(seed_for(*what))


def feature_directions(settings: WorldSettings, device: torch.device) -> Float[Tensor, "N D"]:
    """Unit rows; made once on a machine, for large ones take minutes on a CPU, and kept in the cache folder."""
    decides = {"n_features", "d_in", "orthogonal_steps", "orthogonal_lr", "seed"}
    key = digest_of([settings.model_dump(mode="json", include=decides), "directions 1"])
    path = cache_folder() / "synthetic" / f"{key[:32]}.safetensors"

    def make(path: Path) -> None:
        drawn = torch.randn(settings.n_features, settings.d_in, generator=generator_for("directions", settings.seed))
        rows = pushed_apart(drawn.to(device), settings.orthogonal_steps, settings.orthogonal_lr)
        write_bytes(path, save({"directions": rows.cpu()}))

    return load(kept(path, make).read_bytes())["directions"].to(device)


def pushed_apart(rows: Float[Tensor, "N D"], steps: int, lr: float) -> Float[Tensor, "N D"]:
    """Unit rows after `steps` of Adam on sum_{i != j} (d_i . d_j)^2 + N sum_i (||d_i||^2 - 1)^2."""
    rows = torch.nn.functional.normalize(rows, dim=1).clone()
    optimiser = torch.optim.Adam([rows], lr=lr)
    for _ in range(steps):
        rows.grad = torch.cat([_gradient(rows, some) for some in torch.arange(len(rows)).split(ROWS_AT_ONCE)])
        optimiser.step()
    return torch.nn.functional.normalize(rows, dim=1)


def _gradient(rows: Float[Tensor, "N D"], some: Tensor) -> Float[Tensor, "n D"]:
    products = rows[some] @ rows.T
    own = torch.arange(len(some), device=rows.device), some.to(rows.device)
    products[own] = len(rows) * (products[own] - 1)
    return 4 * products @ rows
