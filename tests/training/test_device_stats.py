"""The books of a training: counted on the device, read late, and what a trainee does with them.

Shapes: F = 3 latents in `Books` alone, F = 24 in a trainee.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda
from graph_walk import backward
from torch._subclasses.fake_tensor import DataDependentOutputException
from toy_trainee import BUILT_IN, activations, started, trained
from twins import no_wait

from sae_bench.saes.active import select
from sae_bench.training import trainer as trainee_module
from sae_bench.training.device_stats import READ_EVERY, ROOM_MARGIN, Books


def keep(books: Books, n_steps: int, fired: list[bool], first: int = 0) -> None:
    for step in range(first, first + n_steps):
        books.note(torch.tensor(fired), 10, step)


def test_the_dead_have_not_fired_for_so_many_tokens_and_are_listed_one_reading_late() -> None:
    books = Books(3, dead_after=10.0 * READ_EVERY, device=torch.device("cpu"))
    keep(books, READ_EVERY, [True, False, False])
    assert books.dead.tolist() == []
    keep(books, READ_EVERY, [True, False, True], READ_EVERY)
    assert books.dead.tolist() == [1, 2]  # as of the last reading
    keep(books, READ_EVERY, [True, False, True], 2 * READ_EVERY)
    assert books.dead.tolist() == [1]


def test_the_first_loss_that_is_not_finite_is_remembered_and_no_later_one_is_used() -> None:
    books = Books(3, 1e9, torch.device("cpu"))
    usable = [
        books.usable(torch.tensor(loss), step).item() for step, loss in enumerate((1.0, torch.inf, 1.0, torch.nan))
    ]
    assert usable == [True, False, False, False]
    assert books.diverged_at is None  # nothing is read yet
    books.close()
    assert (books.diverged_at, books.n_skipped) == (1, 3)


def test_a_step_without_room_is_not_usable_and_the_room_follows_what_was_seen() -> None:
    room = no_wait(0.1)
    books = Books(3, 1e9, torch.device("cpu"), room)
    room.note(torch.tensor(20), 100, 10)
    assert not books.usable(torch.tensor(1.0), 0)
    room.note(torch.tensor(8), 100, 10)
    assert books.usable(torch.tensor(1.0), 1)
    books.read()
    assert room.share == 0.1
    books.read()
    assert room.share == pytest.approx(ROOM_MARGIN * 0.2)
    books.read()
    assert room.share == 0  # nothing was kept since
    assert (books.n_skipped, books.diverged_at) == (1, None)


# --- a trainee ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", BUILT_IN)
def test_training_without_waiting_is_training(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room instead of exact numbers of pairs: the same SAE, up to the order of additions."""
    waiting = trained(arch, kernels="sparse")
    monkeypatch.setattr(trainee_module, "waiting_costs", lambda device: True)
    not_waiting = trained(arch, kernels="sparse")
    not_waiting.books.read()
    assert not_waiting.books.room is not None
    assert (0 < not_waiting.books.room.share < 1) == (arch != "topk")
    assert not_waiting.books.n_skipped == 0
    for name, parameter in waiting.sae.named_parameters():
        torch.testing.assert_close(not_waiting.sae.get_parameter(name), parameter, rtol=1e-3, atol=1e-4)


def test_a_step_without_room_moves_nothing_and_the_next_ones_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainee_module, "waiting_costs", lambda device: True)
    trainee = started("relu", kernels="sparse")
    before = {name: value.detach().clone() for name, value in trainee.sae.named_parameters()}
    assert trainee.books.room is not None
    trainee.books.room.share = 0.001
    for step in range(2 * READ_EVERY):
        trainee.step(activations(step), step, logged=False)
        assert all(torch.equal(value, before[name]) for name, value in trainee.sae.named_parameters())
    trainee.step(activations(99), 2 * READ_EVERY, logged=False)
    assert not torch.equal(trainee.sae.W_enc, before["W_enc"])
    trainee.books.close()
    assert trainee.books.n_skipped == 2 * READ_EVERY
    assert trainee.failure is None


def test_a_loss_that_is_not_finite_leaves_the_weights_and_names_the_step() -> None:
    trainee = started("topk")
    for step in range(4):
        before = {name: value.detach().clone() for name, value in trainee.sae.named_parameters()}
        trainee.step(activations(step) * (torch.inf if step == 3 else 1), step, logged=False)
        moved = {
            name for name, value in trainee.sae.named_parameters() if not torch.allclose(value, before[name], atol=1e-6)
        }
        assert moved == ({"W_enc", "W_dec", "b_enc", "b_dec"} if step < 3 else set())
    trainee.books.close()
    assert trainee.failure == "diverged: the loss at step 3 is not finite"


COMPILED = """
import sys
sys.path[:0] = [""]
import torch
compile = torch.compile
torch.compile = lambda function, **how: compile(function, backend="aot_eager", **how)  # needs no C++ compiler
from toy_trainee import BUILT_IN, trained
for arch in BUILT_IN:
    plain, compiled = trained(arch).sae, trained(arch, compile=True).sae
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(compiled.get_parameter(name), parameter, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.compiler.reset()
"""


def test_a_compiled_loss_trains_alike() -> None:
    """In a process of its own: the compiler cannot follow the shape checks of the tests."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, cwd=Path(__file__).parents[1])


# --- on a GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", BUILT_IN)
def test_the_walk_through_the_graph_is_a_backward_pass(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_torch = trained(arch).sae
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    walked = trained(arch).sae
    for name, parameter in by_torch.named_parameters():
        torch.testing.assert_close(walked.get_parameter(name), parameter)


@pytest.mark.parametrize("choice", ["sparse", "dense", "auto"])
@pytest.mark.parametrize("preset", ["short", "paper"])
@pytest.mark.parametrize("arch", BUILT_IN)
def test_a_step_on_a_fake_gpu_mixes_no_devices_and_asks_for_no_number(arch: str, preset: str, choice: Any) -> None:
    """Fake tensors have devices and shapes but no values: whatever waits for a value, or for a shape, fails."""
    with FakeCuda() as cuda, pytest.MonkeyPatch.context() as patch:
        # The one number that is asked for, before the first step.
        patch.setattr(trainee_module, "room_for", lambda share: 0.2)
        patch.setattr(torch.Tensor, "__float__", lambda self: 0.1)
        patch.setattr(torch.nn.Module, "to", lambda self, device: self)  # it is made there; fakes cannot be moved
        trainee = started(arch, "cuda", preset, kernels=choice)
        patch.undo()
        patch.setattr(torch.Tensor, "backward", backward)
        batches = [activations(step, "cuda") for step in range(READ_EVERY)]
        assert {parameter.device.type for parameter in trainee.sae.parameters()} == {"cuda"}
        trainee.books.dead = torch.zeros(5, dtype=torch.long, device="cuda")
        with cuda.border(closed=True):
            for step in range(READ_EVERY - 1):
                trainee.step(batches[step], step, logged=False)
        trainee.step(batches[-1], READ_EVERY - 1, logged=False)  # sends the books off


def test_a_fake_gpu_finds_a_mixed_device_and_a_number_that_is_asked_for() -> None:
    with FakeCuda():
        x, W = torch.ones(3, 4, device="cuda"), torch.ones(4, 5, device="cuda")
        with pytest.raises(RuntimeError, match="device"):
            select(x, W, torch.zeros(5), lambda z: z > 0)
        with pytest.raises(DataDependentOutputException):
            select(x, W, torch.zeros(5, device="cuda"), lambda z: z > 0)
