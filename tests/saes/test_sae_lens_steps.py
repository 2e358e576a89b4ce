"""One training step of ours against SAELens's, on its weights and its batch: loss, latents and every gradient.

`sae_lens_steps.py` made the file, in SAELens's own environment; its metadata say with which version.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens_steps import DEAD, LAMBDA, B, D, F, K
from safetensors.torch import load_file

from sae_bench import ARCHITECTURES, SAEConfig, Step

THEIRS = load_file(Path(__file__).with_name("sae_lens_steps.safetensors"))
NAMES = {"theta_parameter": "threshold"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "abs_topk": ("abs_topk", {"k_aux": D // 2}),  # theirs; as many are dead, so that their weight is 1 / 32 as ours is
    "matching_pursuit": ("matching_pursuit", {}),
    "quadratic": ("jumprelu", {"penalty": "quadratic", "bandwidth": 0.4, "train_log_theta": False}),
    "tanh": (
        "jumprelu",
        {"penalty": "tanh", "bandwidth": 0.4, "train_log_theta": False, "tanh_scale": 1.5, "pre_act_coeff": 0.05,
         "pre_act_on": "dead"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_sae_lens(case: str) -> None:
    name, options = CASES[case]
    sae: Any = ARCHITECTURES[name](SAEConfig(d_in=D, d_sae=F, l0=K, options=options))
    with torch.no_grad():
        for parameter_name, parameter in sae.named_parameters():
            parameter.copy_(THEIRS[f"{case}.{NAMES.get(parameter_name, parameter_name)}"])
    assert THEIRS["x"].shape == (B, D)
    loss = sae.loss(THEIRS["x"], Step(torch.tensor(LAMBDA), torch.tensor(DEAD)))
    loss.total.backward()
    torch.testing.assert_close(loss.total, THEIRS[f"{case}.loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.latents.to_dense(), THEIRS[f"{case}.f"], rtol=1e-4, atol=1e-5)
    for parameter_name, parameter in sae.named_parameters():
        expected = THEIRS[f"{case}.{NAMES.get(parameter_name, parameter_name)}.grad"]
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=2e-5, msg=f"gradient of {parameter_name}")
