"""How well latents stand for features that are known: directions matched, and firing held against firing.

The metrics of SynthSAEBench (arXiv 2602.14687), as pure functions. Cosines are taken without their sign: a latent that
writes the negative of a feature is that feature's, where f may be negative too.

Shapes: F latents, N features, D width; `*` any others.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def abs_cosines(rows: Float[Tensor, "F D"], features: Float[Tensor, "N D"]) -> Float[Tensor, "F N"]:
    """|cosine| of every row with every feature; 0 where a row is zero."""
    rows, features = (torch.nn.functional.normalize(one, dim=1) for one in (rows, features))
    return (rows @ features.T).abs()


def matched_cosine(cosines: Float[Tensor, "F N"]) -> float:
    """MCC: the mean |cosine| of the best one-to-one matching, over the min(F, N) pairs that it has."""
    found = cosines.double().cpu().numpy()
    return float(found[linear_sum_assignment(found, maximize=True)].mean())


def best_features(cosines: Float[Tensor, "F N"]) -> Int[Tensor, " F"]:
    """The feature that each latent is closest to."""
    return cosines.argmax(1)


def unique_share(best: Int[Tensor, " F"]) -> float:
    """How many features are the best of a latent, for each latent: 1 where no two share one."""
    return len(best.unique()) / len(best)


class Detection(NamedTuple):
    """How well latents detect their features, each; 0 where it is undefined."""

    precision: Float[Tensor, "*F"]
    recall: Float[Tensor, "*F"]
    f1: Float[Tensor, "*F"]


def detection(both: Float[Tensor, "*F"], fired: Float[Tensor, "*F"], true: Float[Tensor, "*F"]) -> Detection:
    """Precision, recall and F1 from counts: of latent and feature firing together, of the latent, of the feature."""
    precision, recall = _share(both, fired), _share(both, true)
    return Detection(precision, recall, _share(2 * both, fired + true))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp(min=1)
