"""A step of training: what screening leaves as it is, and what a batch in parts changes.

Gradients are compared by the norm of their difference.
"""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_trainer import activations, started

from sae_bench import Step
from sae_bench.training.trainer import SAETrainer

EVERY_RECIPE = [
    (arch, preset)
    for arch in ("relu", "gated", "gated:penalty=ri_l1", "topk", "jumprelu", "batchtopk", "matryoshka", "p_anneal")
    for preset in ("paper", "short")
]  # fmt: skip

LAYOUTS = {
    "sparse": ["sparse"], "dense": ["dense"], "switching": ["sparse", "dense", "dense"], "auto": ["auto"],
}  # fmt: skip


def gradients(trainer: SAETrainer, x: Tensor, at: Step) -> dict[str, Tensor]:
    trainer._loss_with_gradients(x, at)
    parameters = trainer.sae.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in parameters if parameter.requires_grad}


def assert_close_in_norm(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, gradient in expected.items():
        distance, length = (torch.linalg.vector_norm(g).item() for g in (found[name] - gradient, gradient))
        assert distance <= tolerance * length, f"{name}: {distance:.3g} of {length:.3g}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("arch", "preset"), EVERY_RECIPE, ids=lambda value: value)
def test_screened_steps_have_the_gradients_of_exact_ones(arch: str, preset: str, layout: str) -> None:
    trainer = started(arch, preset=preset)
    start = copy.deepcopy(trainer.sae.state_dict())
    trainer.step(activations(9), 0, logged=False)  # initial values are quantiles: some pairs lie on the very border
    for i in range(1, 9):
        trainer.kernels = LAYOUTS[layout][i % len(LAYOUTS[layout])]  # type: ignore[assignment]
        x, at = activations(i), Step(torch.tensor(1e-3), torch.tensor([3, 5]))
        trainer.screening = "off"
        exact = gradients(trainer, x, at)
        trainer.screening = "on"
        assert_close_in_norm(gradients(trainer, x, at), exact, 1e-5)
        trainer.step(x, i, logged=False)
    trainer.stats.close()
    assert trainer.failure is None
    assert all(not torch.equal(trainer.sae.state_dict()[name], start[name]) for name in ("W_enc", "W_dec", "b_dec"))


# --- batches in parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [
    "relu", "gated", "topk", "jumprelu:l0_penalty_per=token", "jumprelu:l0_penalty_per=batch",
    "batchtopk", "matryoshka", "p_anneal",
])  # fmt: skip
def test_a_batch_in_parts_has_the_loss_and_the_gradients_of_the_whole(arch: str) -> None:
    """40 tokens in parts of 7; the parts' L0s differ from the batch's, which the penalty on the batch's mean needs."""
    trainer, x = started(arch), activations(1) * torch.linspace(0.5, 1.5, 40)[:, None]
    trainer.sae.double()
    at, losses, found = Step(torch.tensor(0.3), torch.tensor([3, 5])), [], []
    for trainer.micro_batch in (None, 7):
        trainer.optimiser.zero_grad()
        losses.append(trainer._loss_with_gradients(x.double(), at))
        trained = {name: parameter for name, parameter in trainer.sae.named_parameters() if parameter.requires_grad}
        found.append({name: parameter.grad.clone() for name, parameter in trained.items()})
    torch.testing.assert_close(losses[0].total, losses[1].total)
    torch.testing.assert_close(losses[0].seen, losses[1].seen)
    assert losses[0].l0 == losses[1].l0
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_without_the_batch_s_l0_the_penalty_on_its_mean_is_another_in_parts() -> None:
    """Which is why it is told: the mean of the parts' squares is no square of their mean."""
    trainer, x = started("jumprelu:l0_penalty_per=batch"), activations(1) * torch.linspace(0.5, 1.5, 40)[:, None]
    at = Step(torch.tensor(1.0), torch.tensor([], dtype=torch.long))
    parts: list[Any] = list(x.split(20))
    alone = torch.stack([trainer.sae.loss(part, at).total for part in parts]).mean()
    told = [replace(at, survey=found) for found in trainer._survey(parts)]
    whole, losses = (
        trainer.sae.loss(x, at).total,
        [trainer.sae.loss(*each).total for each in zip(parts, told, strict=True)],
    )
    torch.testing.assert_close(torch.stack(losses).mean(), whole)
    assert alone > whole + 1e-3
