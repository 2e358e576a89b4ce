"""Initial values that are taken from the data, as a recipe says.

Shapes: B activations of a sample, D = d_in.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.saes.base import SparseAutoencoder, upper_quantile
from sae_bench.training.recipe import Recipe

INIT_SAMPLE = 8192
"""Activations that are enough for it."""


@torch.no_grad()
def initialise(sae: SparseAutoencoder, recipe: Recipe, mean: Float[Tensor, " D"], sample: Float[Tensor, "B D"]) -> None:
    """Give an SAE its initial values: the mean activation and a sample are those of its site, scaled."""
    if recipe.b_dec_init == "mean":
        sae.b_dec.copy_(mean)
    elif recipe.b_dec_init == "geometric_median":
        sae.b_dec.copy_(geometric_median(sample))
    sae.initialise(sample)
    if recipe.b_enc_init == "quantile" and not sae.tied:
        sae.b_enc.sub_(upper_quantile(sample - sae.b_dec, sae.W_enc, sae.starting_density))


def geometric_median(x: Float[Tensor, "B D"], rounds: int = 100) -> Float[Tensor, " D"]:
    """The point with the least summed distance to all tokens, by Weiszfeld's iteration."""
    median = x.mean(0)
    for _ in range(rounds):
        weight = 1 / torch.linalg.vector_norm(x - median, dim=1).clamp(min=1e-12)
        median = weight @ x / weight.sum()
    return median
