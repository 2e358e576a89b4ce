"""Losses and gradients of peers' architectures, made by the peers themselves on weights and batches drawn here.

    PYTHON_OF_SAE_LENS tests/parity/steps.py sae_lens
    PYTHON_OF_DICTIONARY_LEARNING tests/parity/steps.py dictionary_learning

Each adds what it finds to `peer_steps.json` beside this file, with its version; `tests/saes/test_peer_steps.py` takes
the same steps with ours. In float64, seed 5, with decoder rows of norm one. torch is all that both environments share.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SEED = 5
B, D, F, K = 29, 6, 16, 3
WIDTHS = (2, 6, 16)
DEAD = (1, 4, 9)
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
OUT = Path(__file__).parent / "peer_steps.json"

Found = dict[str, Any]


def draw() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W_dec = torch.nn.functional.normalize(normal(F, D), dim=1)
    b_enc = 0.3 * normal(F)
    b_enc[list(DEAD)] -= 6  # so that these do not fire
    return {"W_enc": normal(D, F), "b_enc": b_enc, "W_dec": W_dec, "b_dec": 0.3 * normal(D), "x": normal(B, D) + 1}


def taken(loss: Tensor, parameters: dict[str, tuple[Tensor, bool]]) -> Found:
    """The loss and its gradients, some parameters being stored transposed."""
    loss.backward()
    gradients = {name: (p.grad.T if transposed else p.grad).tolist() for name, (p, transposed) in parameters.items()}
    return {"loss": loss.item(), "gradients": gradients}


def sae_lens() -> Found:
    from sae_lens.saes import batchtopk_sae, matryoshka_batchtopk_sae  # type: ignore[import-not-found]
    from sae_lens.saes.sae import TrainStepInput  # type: ignore[import-not-found]

    made = {
        "batchtopk": (batchtopk_sae.BatchTopKTrainingSAE, batchtopk_sae.BatchTopKTrainingSAEConfig, {}),
        "matryoshka": (
            matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE,
            matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAEConfig,
            {"matryoshka_widths": list(WIDTHS)},
        ),
    }
    found: Found = {}
    for arch, (sae_class, config_class, own) in made.items():
        for dead in ((), DEAD):
            p = draw()
            config = config_class(d_in=D, d_sae=F, k=K, aux_loss_coefficient=1 / 32, dtype="float64", **own)
            sae = sae_class(config)
            with torch.no_grad():
                for name in PARAMETERS:
                    getattr(sae, name).copy_(p[name])
            mask = torch.zeros(F, dtype=torch.bool)
            mask[list(dead)] = True
            step = TrainStepInput(
                sae_in=p["x"], coefficients={}, dead_neuron_mask=mask, n_training_steps=0, is_logging_step=False
            )
            loss = sae.training_forward_pass(step).loss
            found[f"{arch}, {len(dead)} dead"] = {
                **taken(loss, {name: (getattr(sae, name), False) for name in PARAMETERS}),
                "threshold": sae.topk_threshold.item(),
            }
    return found


def dictionary_learning() -> Found:
    from dictionary_learning.trainers import (  # type: ignore[import-not-found]
        batch_top_k,
        matryoshka_batch_top_k,
        p_anneal,
    )

    shared = {"activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "none", "device": "cpu"}
    sizes = [end - start for start, end in zip((0, *WIDTHS), WIDTHS, strict=False)]
    fractions = [size / F for size in sizes]
    found: Found = {}
    for arch in ("batchtopk", "matryoshka"):
        for dead in ((), DEAD):
            if arch == "batchtopk":
                trainer = batch_top_k.BatchTopKTrainer(steps=10_000, k=K, **shared)
                ae = trainer.ae.double()
                parts = {
                    "W_enc": (ae.encoder.weight, True), "b_enc": (ae.encoder.bias, False),
                    "W_dec": (ae.decoder.weight, True), "b_dec": (ae.b_dec, False),
                }  # fmt: skip
            else:
                trainer = matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer(
                    steps=10_000, k=K, group_fractions=fractions, **shared
                )
                ae = trainer.ae.double()
                parts = {name: (getattr(ae, name), False) for name in PARAMETERS}
            p = draw()
            with torch.no_grad():
                for name, (parameter, transposed) in parts.items():
                    parameter.copy_(p[name].T if transposed else p[name])
            trainer.num_tokens_since_fired[list(dead)] = 10**9
            loss = trainer.loss(p["x"], step=2000)
            found[f"{arch}, {len(dead)} dead"] = {**taken(loss, parts), "threshold": float(ae.threshold)}
    found["p_anneal"] = p_anneal_steps(p_anneal.PAnnealTrainer, shared)
    return found


def p_anneal_steps(trainer_class: Any, shared: dict[str, Any]) -> Found:
    """Forty steps that move no weight: p, the coefficient and the loss of each, and the last gradients."""
    trainer = trainer_class(
        steps=40, sparsity_warmup_steps=None, warmup_steps=0, sparsity_function="Lp^p", initial_sparsity_penalty=0.3,
        anneal_start=12, anneal_end=36, p_end=0.2, n_sparsity_updates=4, sparsity_queue_length=5, **shared,
    )  # fmt: skip
    ae, p = trainer.ae.double(), draw()
    parts = {
        "W_enc": (ae.encoder.weight, True), "b_enc": (ae.encoder.bias, False),
        "W_dec": (ae.decoder.weight, True), "b_dec": (ae.bias, False),
    }  # fmt: skip
    with torch.no_grad():
        for name, (parameter, transposed) in parts.items():
            parameter.copy_(p[name].T if transposed else p[name])
    rows = []
    for step in range(40):
        of_this_step = trainer.p, trainer.sparsity_coeff
        loss = trainer.loss(p["x"] * (1 + step / 40), step)
        rows.append([*of_this_step, loss.item()])
    return {"steps": rows, **taken(loss, parts)}


if __name__ == "__main__":
    peer = sys.argv[1]
    package = {"sae_lens": "sae-lens", "dictionary_learning": "dictionary-learning"}[peer]
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    known[peer] = {"version": version(package), "torch": torch.__version__, "seed": SEED, "found": globals()[peer]()}
    OUT.write_text(json.dumps(known, indent=None) + "\n")
