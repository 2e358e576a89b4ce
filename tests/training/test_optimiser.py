"""The optimiser: recipes written for data of another norm, and clipping of the gradient.

Shapes: d_in = 6, d_sae = 24, batches of 40.
"""

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_trainer import activations, begun

from sae_bench import ARCHITECTURES, SAEConfig
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.training import optimiser as optimiser_module
from sae_bench.training import trainer as trainer_module
from sae_bench.training.optimiser import adam, descend, tidy
from sae_bench.training.recipe import Recipe

CLIP = {"relu": 4.0, "gated": 10.0, "topk": 1.0, "jumprelu": 10.0}
"""Norms on data of norm sqrt(d_in), which some of the steps exceed."""

S = math.sqrt(6)  # data with E||x||^2 = d_in are S times as large as ours


def paper(arch: str, **departures: Any) -> Recipe:
    """The paper's recipe at a rate that moves something in 30 steps, with an eps that is felt and a norm that clips."""
    recipe = settle(ArchSpec(name=arch), "paper")[1]
    common = {"lr": 5e-3, "lr_warmup": 0, "sparsity_warmup": 0.1, "adam_eps": 1e-2, "grad_clip": CLIP[arch]}
    return recipe.model_copy(update=common | departures)


def trained_on(
    x_scale: float, arch: str, recipe: Recipe, coefficient: float, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[Any, list[float]]:
    """An SAE trained in float64 on activations times `x_scale`, and the gradients' norms before clipping."""
    norms: list[float] = []

    def noted(*of: Any) -> tuple[Tensor, Tensor]:
        norm, factor = tidy(*of)
        norms.append(float(norm))
        return norm, factor

    monkeypatch.setattr(trainer_module, "tidy", noted)
    sae = ARCHITECTURES[arch](SAEConfig(d_in=6, d_sae=24, coefficient=coefficient, seed=1, options=options)).double()
    trainer = begun(sae, recipe, x_scale * activations(0).double())
    for step in range(30):
        trainer.step(x_scale * activations(step).double(), step, logged=False)
    return sae, norms


THRESHOLDS = ({"bandwidth": 0.2, "theta_init": 0.3}, {"bandwidth": 0.2 * S, "theta_init": 0.3 * S})


@pytest.mark.parametrize(
    ("arch", "coefficient", "theirs", "options"),
    [
        ("relu", 0.05, 0.05 * S, ({}, {})),
        ("gated", 0.05, 0.05 * S, ({}, {})),
        ("topk", 3, 3, ({}, {})),
        ("jumprelu", 0.01, 0.01 * S**2, THRESHOLDS),
        ("jumprelu", 0.01, 0.01 * S**2, tuple(each | {"train_log_theta": False} for each in THRESHOLDS)),
    ],
    ids=["relu", "gated", "topk", "jumprelu, log theta", "jumprelu, theta"],
)
def test_a_recipe_for_data_of_norm_sqrt_d_in_trains_the_same_sae_on_ours(
    arch: str, coefficient: float, theirs: float, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On their data by the numbers as they stand, on ours converted: the same SAE up to the scale of its biases."""
    on_ours, norms = trained_on(
        1.0, arch, paper(arch, data_norm="sqrt_d_in"), coefficient, monkeypatch, **options[0]
    )  # fmt: skip
    on_theirs, their_norms = trained_on(S, arch, paper(arch, data_norm="unit"), theirs, monkeypatch, **options[1])
    assert min(norms) < CLIP[arch] < max(norms), "some steps are clipped and some are not"
    assert norms == pytest.approx(their_norms)
    for name, parameter in on_ours.named_parameters():
        grows = name in ("b_enc", "b_dec", "b_mag") or (name == "theta_parameter" and not on_ours.theta_in_logs)
        shift = math.log(S) if name == "theta_parameter" and not grows else 0.0
        expected = parameter.detach() * (S if grows else 1) + shift
        torch.testing.assert_close(on_theirs.get_parameter(name).detach(), expected, msg=name)
        if name != "W_dec":
            assert parameter.std() > 1e-4, f"{name} has not moved, which shows nothing"


def test_papers_relu_is_written_for_data_of_norm_sqrt_d_in_and_no_other_recipe_is() -> None:
    """At d_in = 640 its biases move 640^-1/2 as fast as its matrices."""
    for arch in ("relu", "gated", "topk", "jumprelu"):
        for preset in ("paper", "short"):
            recipe = settle(ArchSpec(name=arch), preset)[1]  # type: ignore[arg-type]
            assert (recipe.data_norm == "sqrt_d_in") == ((arch, preset) == ("relu", "paper"))
    relu = settle(ArchSpec(name="relu"), "paper")[1]
    sae = ARCHITECTURES["relu"](SAEConfig(d_in=640, d_sae=8, l0=3))
    factors = {group["params"][0].shape: group["factor"] for group in adam(sae, relu).param_groups}
    assert factors == pytest.approx(
        {torch.Size(shape): factor for shape, factor in {
            (8, 640): 1, (640, 8): 1, (8,): 640**-0.5, (640,): 640**-0.5,
        }.items()}
    )  # fmt: skip


# --- clipping -----------------------------------------------------------------------------------------------------


def with_gradients(norm: float, data_norm: str = "unit") -> tuple[Any, torch.optim.Adam]:
    """A topk SAE, d_in = 4, whose gradient has this norm on our data: 12/13 of it in W_enc, 5/13 in b_enc."""
    sae = ARCHITECTURES["topk"](SAEConfig(d_in=4, d_sae=4, l0=1))
    optimiser = adam(sae, settle(ArchSpec(name="topk", settings={"data_norm": data_norm}), "short")[1])
    sae.W_enc.grad, sae.b_enc.grad = torch.zeros(4, 4), torch.zeros(4)
    sae.W_enc.grad[1, 2], sae.b_enc.grad[3] = 12 * norm / 13, -5 * norm / 13
    return sae, optimiser


@pytest.mark.parametrize(("bound", "left"), [(0.1, 0.1), (0.39, 0.39), (0.4, 0.4 * 0.975), (2.0, 0.39)])
def test_a_longer_gradient_is_shrunk_to_the_bound_and_a_shorter_one_is_left(bound: float, left: float) -> None:
    sae, optimiser = with_gradients(0.39)
    norm, factor = tidy(optimiser, sae, bound)
    assert norm.item() == pytest.approx(0.39)
    assert norm.item() * factor.item() == pytest.approx(left)


def test_the_norm_is_that_on_the_data_which_the_recipe_is_written_for() -> None:
    """d_in = 4: a matrix's gradient counts four times, a bias's twice: (48, 10) / 13 and not (12, 5) / 13."""
    sae, optimiser = with_gradients(1.0, "sqrt_d_in")
    norm = math.hypot(48, 10) / 13
    found, factor = tidy(optimiser, sae, 1.0)
    assert found.item() == pytest.approx(norm)
    assert factor.item() == pytest.approx(1 / norm)


def test_no_gradient_is_no_reason_to_fail() -> None:
    sae, optimiser = with_gradients(0.0)
    norm, factor = tidy(optimiser, sae, 0.1)
    assert (norm.item(), factor.item()) == (0, 1)


def test_a_step_takes_the_gradients_times_the_factor() -> None:
    """As Adam does where they are multiplied before."""
    factor, trained = torch.tensor(0.25), []
    for shrunk in (False, True):
        sae, optimiser = with_gradients(0.39)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for parameter in sae.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator) * (factor if shrunk else 1)
            descend(optimiser, sae, None if shrunk else factor, torch.tensor(True))
        trained.append(sae)
    for one, other in zip(*(sae.parameters() for sae in trained), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("by_columns", [False, True], ids=["W_dec by rows", "W_dec by columns"])
def test_on_a_gpu_kernels_of_ours_step_matrices_and_torch_the_rest(
    by_columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin's parameter may have three dimensions; its W_dec may be stored column by column."""
    sae, _ = with_gradients(0.39)
    sae.cube = torch.nn.Parameter(torch.ones(2, 3, 4))
    sae.W_dec = torch.nn.Parameter(sae.W_dec.detach().T.contiguous().T if by_columns else sae.W_dec.detach())
    optimiser = adam(sae, settle(ArchSpec(name="topk"), "short")[1])
    for i, parameter in enumerate(sae.parameters()):
        parameter.grad = torch.empty_like(parameter).copy_(torch.linspace(1, 2 + i, parameter.shape[-1]))
    ours = []

    def step(group: dict[str, Any], *_: Any, unit_norm: bool) -> None:
        (parameter,) = group["params"]
        parameter.grad = None
        ours.append((next(name for name, value in sae.named_parameters() if value is parameter), unit_norm))

    stand_in = SimpleNamespace(step=step)
    monkeypatch.setitem(sys.modules, "sae_bench.training.triton_adam", stand_in)
    monkeypatch.setattr("sae_bench.training.triton_adam", stand_in, raising=False)
    monkeypatch.setattr(optimiser_module, "kernels_for", lambda device: stand_in)
    before = {name: value.detach().clone() for name, value in sae.named_parameters()}
    tidy(optimiser, sae, None)
    descend(optimiser, sae, None, torch.tensor(True))
    assert sorted(ours) == ([("W_enc", False)] if by_columns else [("W_dec", True), ("W_enc", False)])
    moved = {name for name, value in sae.named_parameters() if (value != before[name]).any()}
    assert moved == {"b_enc", "b_dec", "cube"} | ({"W_dec"} if by_columns else set())
    torch.testing.assert_close(torch.linalg.vector_norm(sae.W_dec, dim=1), torch.ones(4))
