"""One architecture's SAE as another's: gated and relu are jumprelus exactly, a jumprelu is a gated, a topk nearly one.

    gated -> jumprelu   gate and magnitude see the same x W, so one inequality does for both:
                        W' = W exp(r),  b' = b_mag,  theta' = max(b_mag - exp(r) b_gate, 0)
    jumprelu -> gated   r = 0,  b_mag = b,  b_gate = b - theta
    relu -> jumprelu    theta = 0
    topk -> jumprelu    one theta for all latents, at which as many are active as before, on average over some
                        activations; which of them, and how many on one token, changes: that costs something

Shapes: n tokens, D = d_in, F = d_sae.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.errors import UserError
from sae_bench.registry import ARCHITECTURES
from sae_bench.saes.active import latent_major
from sae_bench.saes.base import SAEConfig, SparseAutoencoder

Weights = dict[str, Tensor]
"""Tensors by the names that files know (`SparseAutoencoder.stored`)."""

TARGETS = ("jumprelu", "gated")
SOURCES = ("relu", "gated", "topk", "jumprelu")
"""Nonlinearities that have a conversion; no threshold stands for signs, or for a pursuit."""

ROOM = 8
"""A token's pre-activations that are looked at, as a multiple of k."""


def assemble(arch: str, config: SAEConfig, weights: Weights) -> SparseAutoencoder:
    """An SAE that takes raw activations, around these very tensors.

    Raises:
        UserError: the architecture has others.
    """
    with torch.device("meta"):
        sae = ARCHITECTURES[arch](config)
    if not sae.tied:
        weights = weights | {"W_enc": latent_major(weights["W_enc"])}
    shapes = {name: weight.shape for name, weight in sae.stored().items()}
    if shapes != {name: weight.shape for name, weight in weights.items()}:
        found = ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in weights.items())
        raise UserError(f"these are not the tensors of a {arch} SAE: {found}")
    return sae.load_stored(weights, assign=True)


def to_built_in(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The SAE, which takes raw activations, as the built-in architecture that computes the same.

    Raises:
        UserError: a plugin does not say which, or its tensors are not those of the one that it names.
    """
    other = sae.as_built_in() or sae
    if other.nonlinearity is None:
        raise UserError(
            f'architecture "{sae.name}" does not say how it is exported: give it as_built_in() or a nonlinearity'
        )
    if type(other) is ARCHITECTURES[other.nonlinearity]:
        return other
    return _around(other.nonlinearity, other, other.stored())


def convert(sae: SparseAutoencoder, to: str, x: Float[Tensor, "n D"] | None = None) -> SparseAutoencoder:
    """The SAE as a jumprelu or a gated one; a topk needs raw activations to calibrate its threshold on.

    Raises:
        UserError: there is no such conversion.
    """
    assert sae.folded, "conversions are of SAEs that take raw activations"
    name, sae = sae.name, to_built_in(sae)
    if to not in TARGETS or sae.nonlinearity not in SOURCES:
        raise UserError(
            f'a {name} SAE has no conversion to "{to}": relu, gated, topk and jumprelu become jumprelu or gated'
        )
    if sae.nonlinearity == to:
        return sae
    jumprelu = sae if sae.nonlinearity == "jumprelu" else _to_jumprelu(sae, x)
    return jumprelu if to == "jumprelu" else _to_gated(jumprelu)


def _to_jumprelu(sae: SparseAutoencoder, x: Float[Tensor, "n D"] | None) -> SparseAutoencoder:
    w = sae.stored()
    if sae.nonlinearity == "gated":
        gain, b_mag = w["r_mag"].double().exp(), w.pop("b_mag").double()
        theta = (b_mag - gain * w.pop("b_gate").double()).clamp(min=0).float()
        del w["r_mag"]
        w |= {"W_enc": (w["W_enc"].double() * gain).float(), "b_enc": b_mag.float()}
    elif sae.nonlinearity == "topk":
        assert x is not None, "a topk's threshold is calibrated on activations"
        theta = torch.full_like(w["b_enc"], calibrated_threshold(sae, x))
    else:
        theta = torch.zeros_like(w["b_enc"])
    return _around("jumprelu", sae, w | {"threshold": theta})


def _to_gated(sae: SparseAutoencoder) -> SparseAutoencoder:
    w = sae.stored()
    b_mag, theta = w.pop("b_enc"), w.pop("threshold")
    b_gate = (b_mag.double() - theta.double()).float()
    return _around("gated", sae, w | {"b_gate": b_gate, "b_mag": b_mag, "r_mag": torch.zeros_like(b_mag)})


def _around(arch: str, sae: SparseAutoencoder, weights: Weights) -> SparseAutoencoder:
    """An SAE of the same shape around copies of other weights; a raw coefficient means nothing to another kind."""
    same_kind = arch == sae.nonlinearity and (arch == "topk") == (sae.control == "k")  # a batchtopk's is its k
    coefficient = sae.config.coefficient if same_kind else None
    config = sae.config.model_copy(update={"options": {}, "coefficient": coefficient})
    return assemble(arch, config, {name: weight.clone() for name, weight in weights.items()})


@torch.no_grad()
def calibrated_threshold(sae: SparseAutoencoder, x: Float[Tensor, "n D"]) -> float:
    """What, on these activations, as many pre-activations exceed as topk keeps: n k of them, but none below zero."""
    k = int(sae.config.sparsity)
    room = min(ROOM * k, sae.config.d_sae)
    parts = (torch.addmm(sae.b_enc, part, sae.W_enc) for part in x.split(1024))
    largest = torch.cat([z.topk(room, dim=1, sorted=False).values.flatten() for z in parts])
    n_kept = len(x) * k
    if n_kept >= len(largest):
        return 0.0
    # The largest value that is left out: activity is strict, so what equals the threshold is off.
    return max(float(largest.kthvalue(len(largest) - n_kept).values), 0.0)
