"""Every built-in equals its dense twin at every density, however its active set is stored.

The batch does not divide into chunks, a tenth of the latents never fires, and the first token has no active latent
where the architecture allows it.

Shapes: B tokens, D = d_in, F = d_sae.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from twins import (
    Twin,
    assert_twins_agree_on,
    gated_ri_l1_twin,
    gated_twin,
    jumprelu_twin,
    relu_twin,
    step,
    topk_twin,
)

from sae_bench import ARCHITECTURES, SAEConfig, SparseAutoencoder
from sae_bench.saes import chunks

B, D, F, CHUNK = 53, 6, 100, 11
EPS = 0.02
SILENT = slice(F - F // 10, F)

DENSITIES = (0.001, 0.01, 0.08, 0.3, 0.6)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 4 * F * CHUNK)


def activations() -> Tensor:
    """The first coordinate is zero but for the first token, which it silences: see `at_density`."""
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x[:, 0] = 0
    x[0, 0] = -1000
    return x


def at_density(name: str, density: float, **options: Any) -> SparseAutoencoder:
    """An SAE in general position, with biases or thresholds at which this share of the pairs is active."""
    config = SAEConfig(d_in=D, d_sae=F, l0=max(1, round(density * F)), seed=7, options=options)
    sae = ARCHITECTURES[name](config).double()
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
        sae.W_enc[0] = 1.0
        if name == "jumprelu":
            sae.b_enc += 3  # a threshold cuts at any density only where pre-activations are above zero
        sae.b_enc[SILENT] = -50.0
        x = activations()
        z = (x - sae.b_dec if sae.pre_encoder_bias else x) @ sae.W_enc + sae.b_enc
        cut = z.flatten().topk(max(1, round(density * B * F))).values[-1] - 1e-9
        if name == "jumprelu":
            sae.theta_parameter.fill_(float(cut))
            assert cut > EPS / 2
        elif name != "topk":
            sae.b_enc -= cut
    return sae


CASES: dict[str, tuple[str, dict[str, Any], Twin]] = {
    "relu": ("relu", {}, relu_twin),
    "gated": ("gated", {}, gated_twin),
    "gated ri_l1": ("gated", {"penalty": "ri_l1"}, gated_ri_l1_twin),
}


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("case", CASES)
def test_masks(case: str, density: float) -> None:
    name, options, twin = CASES[case]
    sae = at_density(name, density, **options)
    assert_share(sae, density)
    assert_twins_agree_on(activations(), sae, twin, step())


@pytest.mark.parametrize("per", ["token", "batch"])
@pytest.mark.parametrize("density", DENSITIES)
def test_jumprelu(density: float, per: str) -> None:
    """Several pairs lie within the window at every density: the cut is at one, and theta is a bandwidth wide."""
    sae = at_density("jumprelu", density, train_log_theta=False, bandwidth=EPS, l0_penalty_per=per)
    assert_share(sae, density)
    assert_twins_agree_on(activations(), sae, jumprelu_twin(EPS, sae.config.l0, log=False, per=per), step())


@pytest.mark.parametrize("dead", [(), tuple(range(F))[SILENT]], ids=["none dead", "the silent are dead"])
@pytest.mark.parametrize("density", DENSITIES)
def test_topk(density: float, dead: tuple[int, ...]) -> None:
    sae: Any = at_density("topk", density, k_aux=4)
    assert_twins_agree_on(activations(), sae, lambda p, x: topk_twin(p, x, sae.k, dead, 4), step(dead=dead))


@torch.no_grad()
def assert_share(sae: SparseAutoencoder, density: float) -> None:
    """The case is what it says: the density, latents that never fire, a token without any."""
    fired = sae.encode(activations()).to_dense() > 0
    wanted = max(1, round(density * B * F))
    assert wanted / 3 <= fired.sum() <= wanted  # a gated pair may be on with magnitude zero
    assert not fired[:, SILENT].any()
    assert not fired[0].any()
