"""The random baseline: an SAE that was never trained, whose latents are explained and scored like any other's.

Its encoder and decoder are the random unit vectors that training starts from; on every token the k latents of highest
pre-activation fire, k being the L0 that the trained ones were to have, measured from the site's mean activation: it
would else be the mean that decides which fire.
"""

from collections.abc import Iterable
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.lm.sites import Site
from sae_bench.records.files import digest_of
from sae_bench.records.schema import SAEDescription, SiteDescription, Training
from sae_bench.saes.active import Active
from sae_bench.saes.base import START_DENSITY, SAEConfig, SparseAutoencoder
from sae_bench.saes.step import Loss, Step

LABEL = "random (chance)"


class RandomSAE(SparseAutoencoder):
    """The k highest of random projections."""

    name = "random"

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        k = round(self.config.l0 or 1)
        active = self.select(x, lambda z: z.topk(k, dim=1).indices)
        return active.with_values(active.values.relu())

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        raise AssertionError("it is never trained")

    @torch.no_grad()
    def centre(self, mean: Float[Tensor, " D"]) -> "RandomSAE":
        """Measure from this mean; afterwards it takes raw activations."""
        self.requires_grad_(False)
        self.b_dec.copy_(mean)
        self.fold(1.0)
        return self


def random_baselines(shapes: Iterable[tuple[SAEConfig, Site]]) -> list[tuple[SAEDescription, SAEConfig, Site]]:
    """One random SAE for every site, width and L0 of some SAEs, each behind what a record says of it."""
    found: dict[str, tuple[SAEDescription, SAEConfig, Site]] = {}
    for shape, site in shapes:
        l0 = shape.l0 if shape.l0 is not None else max(1.0, START_DENSITY * shape.d_sae)
        config = SAEConfig(d_in=shape.d_in, d_sae=shape.d_sae, l0=l0)
        name = f"random.{site.name}.w{config.d_sae}.l0_{l0:g}"
        described = SAEDescription(
            id=name,
            arch="random",
            label=LABEL,
            arch_version="1",
            site=SiteDescription(**asdict(site), name=site.name),
            d_in=config.d_in,
            d_sae=config.d_sae,
            target_l0=config.l0,
            coefficient=None,
            seed=config.seed,
            control=True,
            options={},
            recipe={},
            training=Training(failure=None),
            weights_sha256=digest_of(["random", "1", config.model_dump(mode="json")]),
        )
        found[name] = (described, config, site)
    return list(found.values())
