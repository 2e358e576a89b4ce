"""One training step of SAELens on random weights and a random batch, its loss and gradients: what ours is held against.

    PYTHON_WITH_SAE_LENS tests/saes/sae_lens_steps.py        # writes sae_lens_steps.safetensors beside itself

Shapes: 32 tokens, d_in 8, d_sae 24; float32; everything from one seed.
"""

from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

SEED, B, D, F, K = 7, 32, 8, 24, 3
DEAD = (1, 6, 13, 20)
LAMBDA = 0.3


def cases():
    from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig

    shape = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
    abs_topk = AbsTopKTrainingSAEConfig(**shape, k=K, aux_loss_coefficient=1 / 32, rescale_acts_by_decoder_norm=False)
    pursuit = MatchingPursuitTrainingSAEConfig(
        **shape, max_iterations=K, residual_threshold=0.0, stop_on_duplicate_support=False, decoder_init_norm=1.0
    )
    quadratic = JumpReLUTrainingSAEConfig(
        **shape, jumprelu_sparsity_loss_mode="quadratic", target_l0=3.0, jumprelu_bandwidth=0.4
    )
    tanh = JumpReLUTrainingSAEConfig(
        **(shape | {"apply_b_dec_to_input": False}), jumprelu_sparsity_loss_mode="tanh", jumprelu_bandwidth=0.4,
        jumprelu_tanh_scale=1.5, pre_act_loss_coefficient=0.05, jumprelu_ste_to_input=True,
    )  # fmt: skip
    yield "abs_topk", AbsTopKTrainingSAE(abs_topk)
    yield "matching_pursuit", MatchingPursuitTrainingSAE(pursuit)
    yield "quadratic", JumpReLUTrainingSAE(quadratic)
    yield "tanh", JumpReLUTrainingSAE(tanh)


def main():
    from sae_lens.saes.sae import TrainStepInput

    draw = torch.Generator().manual_seed(SEED)
    x = torch.randn(B, D, generator=draw) + 1
    dead = torch.zeros(F, dtype=torch.bool)
    dead[list(DEAD)] = True
    found = {"x": x}
    for name, sae in cases():
        with torch.no_grad():
            for parameter_name, parameter in sorted(sae.named_parameters()):
                noise = torch.randn(parameter.shape, generator=draw)
                parameter.copy_(0.7 + 0.1 * noise.abs() if parameter_name == "threshold" else 0.4 * noise)
                found[f"{name}.{parameter_name}"] = parameter.detach().clone()
        out = sae.training_forward_pass(
            TrainStepInput(sae_in=x, coefficients={"l0": LAMBDA}, dead_neuron_mask=dead, n_training_steps=1,
                           is_logging_step=False)
        )  # fmt: skip
        out.loss.backward()
        found[f"{name}.loss"] = out.loss.detach()
        found[f"{name}.f"] = out.feature_acts.detach().clone()
        for parameter_name, parameter in sae.named_parameters():
            found[f"{name}.{parameter_name}.grad"] = parameter.grad.clone()
    about = {"package": f"sae_lens {version('sae_lens')}", "torch": torch.__version__, "seed": str(SEED)}
    save_file(found, Path(__file__).with_suffix(".safetensors"), about)


if __name__ == "__main__":
    main()
