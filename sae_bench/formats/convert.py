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
from sae_bench.formats.foreign import Weights, assemble
from sae_bench.saes.base import SAEConfig, SparseAutoencoder

TARGETS = ("jumprelu", "gated")
EXACT = ("relu", "gated", "jumprelu")
"""What becomes a jumprelu, and from there a gated SAE, without any activations to look at."""

ROOM = 8
"""A token's pre-activations that are looked at, as a multiple of k."""


def convert(sae: SparseAutoencoder, to: str, x: Float[Tensor, "n D"] | None = None) -> SparseAutoencoder:
    """The SAE as a jumprelu or a gated one; a topk needs raw activations to calibrate its threshold on.

    Raises:
        UserError: there is no such conversion.
    """
    if to not in TARGETS or sae.name not in (*EXACT, "topk"):
        raise UserError(
            f'a {sae.name} SAE has no conversion to "{to}": relu, gated, topk and jumprelu become jumprelu or gated'
        )
    assert sae.folded, "conversions are of SAEs that take raw activations"
    jumprelu = sae if sae.name == "jumprelu" else _to_jumprelu(sae, x)
    return jumprelu if to == "jumprelu" else _to_gated(jumprelu)


def _to_jumprelu(sae: SparseAutoencoder, x: Float[Tensor, "n D"] | None) -> SparseAutoencoder:
    w: Weights = dict(sae.named_parameters())
    theta = torch.zeros_like(w["b_enc"])
    if sae.name == "gated":
        gain, b_mag = w["r_mag"].double().exp(), w["b_mag"].double()
        theta = (b_mag - gain * w["b_enc"].double()).clamp(min=0).float()
        w |= {"W_enc": (w["W_enc"].double() * gain).float(), "b_enc": w["b_mag"]}
    elif sae.name == "topk":
        assert x is not None, "a topk's threshold is calibrated on activations"
        theta = torch.full_like(w["b_enc"], calibrated_threshold(sae, x))
    return _assemble("jumprelu", sae, w | {"theta_parameter": theta})


def _to_gated(sae: SparseAutoencoder) -> SparseAutoencoder:
    w: Weights = dict(sae.named_parameters())
    b_gate = (w["b_enc"].double() - w["theta_parameter"].double()).float()
    return _assemble("gated", sae, w | {"b_enc": b_gate, "b_mag": w["b_enc"], "r_mag": torch.zeros_like(w["b_enc"])})


def _assemble(arch: str, sae: SparseAutoencoder, weights: Weights) -> SparseAutoencoder:
    own = {"jumprelu": ("theta_parameter",), "gated": ("b_mag", "r_mag")}[arch]
    names = ("W_enc", "W_dec", "b_enc", "b_dec", *own)
    config = SAEConfig(d_in=sae.config.d_in, d_sae=sae.config.d_sae, l0=sae.config.l0, seed=sae.config.seed)
    return assemble(arch, config, {name: weights[name].detach().clone() for name in names})


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
