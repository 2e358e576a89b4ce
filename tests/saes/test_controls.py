"""Controls: what each of them is, by hand, and that nothing of it is learned that should not be.

Shapes: B tokens, D = d_in, F = d_sae.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench import ARCHITECTURES, SAEConfig, SparseAutoencoder
from sae_bench.errors import UserError
from sae_bench.lm.sites import Site
from sae_bench.registry import known_architectures
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.config import RunConfig
from sae_bench.runs.plan import settle
from sae_bench.saes.base import initial_decoder
from sae_bench.training.trainer import SAETrainer, StepSettings

B, D, F, K = 300, 6, 24, 3
N_STEPS = 8
CONTROLS = ["frozen_decoder", "frozen_encoder", "pca", "permuted", "random"]
FROZEN = {"frozen_decoder": ["W_dec"], "frozen_encoder": ["W_enc", "b_enc"]}
SITE = Site(0, "resid_post", "layers.0", "output", D)


def activations(n: int = B) -> Tensor:
    """Stretched unlike in each direction, about a mean that is not zero."""
    draw = torch.Generator().manual_seed(3)
    return torch.randn(n, D, generator=draw) * torch.tensor([3.0, 2.0, 1.0, 0.6, 0.4, 0.2]) + 1.5


def build(name: str, preset: Any = "short", seed: int = 0) -> SAETrainer:
    options, recipe = settle(ArchSpec(name=name), preset)
    sae = ARCHITECTURES[name](SAEConfig(d_in=D, d_sae=F, l0=K, seed=seed, options=options))
    settings = StepSettings(n_steps=N_STEPS, batch_size=B, device=torch.device("cpu"))
    trainer = SAETrainer(name, sae, (SITE, seed), recipe, settings)
    x = activations()
    trainer.initialise(x.mean(0), x)
    return trainer


def parameters(sae: SparseAutoencoder) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in sae.named_parameters()}


def trained(trainer: SAETrainer) -> SAETrainer:
    for step in range(N_STEPS):
        trainer.step(activations(), step, logged=True)
    return trainer


def test_all_leaves_controls_out_and_the_flag_adds_them() -> None:
    def archs(**given: Any) -> list[str]:
        given |= {"model": "demo", "sites": ["resid_post"]}
        return [arch.name for arch in RunConfig.build(given, known=known_architectures).archs]

    assert known_architectures(True) == CONTROLS
    assert not set(archs(archs=["all"])) & set(CONTROLS)
    assert archs(archs=["topk"], controls=True) == ["topk", *CONTROLS]
    assert archs(archs=["random", "topk"], controls=True) == ["random", "topk", *sorted({*CONTROLS} - {"random"})]


def test_the_flag_is_true_or_false() -> None:
    with pytest.raises(UserError, match=r"--controls: .*boolean \(given: 'yes'\)"):
        RunConfig.build({"model": "demo", "sites": ["resid_post"], "controls": "yes"}, known=known_architectures)


def test_a_run_with_the_flag_is_the_run_that_names_the_controls() -> None:
    given = {"model": "demo", "sites": ["resid_post"]}
    by_flag = RunConfig.build(given, {"archs": ["topk"], "controls": True}, known=known_architectures)
    by_name = RunConfig.build(given, {"archs": ["topk", *CONTROLS]}, known=known_architectures)
    assert by_flag.hash == by_name.hash


@pytest.mark.parametrize("preset", ["short", "paper"])
@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_fires_on_k_latents(name: str, preset: str) -> None:
    trainer = trained(build(name, preset))
    trainer.finish(2.0)
    n_active = trainer.sae.encode(2.0 * activations()).active_per_token().float()
    assert trainer.failure is None
    assert n_active.max() == K
    assert n_active.mean() > 0.9 * K


@pytest.mark.parametrize("name", ["random", "pca"])
def test_what_is_not_trained_takes_no_step(name: str) -> None:
    trainer = build(name)
    before = parameters(trainer.sae)
    trained(trainer)
    assert all(torch.equal(value, before[of]) for of, value in parameters(trainer.sae).items())
    assert trainer.log == []
    assert trainer.seconds == 0


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_keeps_its_bits_and_everything_else_learns(name: str) -> None:
    trainer = build(name)
    before = parameters(trainer.sae)
    trained(trainer)
    same = {of for of, value in parameters(trainer.sae).items() if torch.equal(value, before[of])}
    assert same == set(FROZEN[name])
    assert trainer.log[-1]["fve"] > trainer.log[0]["fve"]


@pytest.mark.parametrize("name", FROZEN)
def test_directions_of_frozen_controls_are_those_that_all_start_from(name: str) -> None:
    start, sae = initial_decoder(D, F, 0), trained(build(name)).sae
    torch.testing.assert_close(sae.W_dec.data if name == "frozen_decoder" else sae.W_enc.data.T, start)


def test_latents_of_the_frozen_encoder_are_the_same_before_and_after_training() -> None:
    """Those of x minus the data's mean on random unit vectors: the k largest."""
    trainer = build("frozen_encoder")
    x = activations()
    z = (x - x.mean(0)) @ initial_decoder(D, F, 0).T
    expected = torch.zeros_like(z).scatter(1, z.topk(K).indices, z.topk(K).values.relu())
    torch.testing.assert_close(trainer.sae.encode(x).to_dense(), expected)
    trained(trainer).finish(5.0)
    torch.testing.assert_close(trainer.sae.encode(5 * x).to_dense(), 5 * expected)


@torch.no_grad()
def test_random_is_neither_too_long_nor_too_short() -> None:
    """s is the least-squares scale: the error is orthogonal to the reconstruction, and no other scale has a smaller."""
    sae, x = build("random").sae, activations()
    centred, sums = x - x.mean(0), sae(x) - x.mean(0)
    assert ((centred - sums) * sums).sum().abs() < 1e-4 * sums.square().sum()
    errors = [(centred - scale * sums).square().sum() for scale in (0.9, 1.0, 1.1)]
    assert errors[1] < min(errors[0], errors[2])
    torch.testing.assert_close(sae.W_dec.data, initial_decoder(D, F, 0))
    torch.testing.assert_close(torch.nn.functional.normalize(sae.W_enc, dim=0).T, initial_decoder(D, F, 0))


@torch.no_grad()
def test_pca_by_hand() -> None:
    """Axes stretched 3 and 2 about (1, 1): the larger coefficient of x = (-2, 2) is 3 along -e_1: x_hat = (-2, 1)."""
    sae = ARCHITECTURES["pca"](SAEConfig(d_in=2, d_sae=5, l0=1))
    sae.b_dec.fill_(1.0)
    sae.initialise(torch.tensor([[4.0, 1.0], [-2.0, 1.0], [1.0, 3.0], [1.0, -1.0]]))
    x = torch.tensor([[-2.0, 2.0], [1.5, -1.0]])
    torch.testing.assert_close(sae(x), torch.tensor([[-2.0, 1.0], [1.0, -1.0]]))
    assert sae.encode(x).active_per_token().tolist() == [1, 1]
    pairs = sae.W_dec[:2] + sae.W_dec[2:4]
    torch.testing.assert_close(pairs, torch.zeros(2, 2))
    torch.testing.assert_close(sae.W_enc[:, 4], torch.zeros(2))


@torch.no_grad()
def test_pca_with_all_its_components_is_exact_and_with_k_the_best_that_its_basis_can() -> None:
    x = activations()
    whole = ARCHITECTURES["pca"](SAEConfig(d_in=D, d_sae=2 * D, l0=D))
    some = ARCHITECTURES["pca"](SAEConfig(d_in=D, d_sae=2 * D, l0=2))
    for sae in (whole, some):
        sae.b_dec.copy_(x.mean(0))
        sae.initialise(x)
    torch.testing.assert_close(whole(x), x, atol=1e-4, rtol=1e-4)
    basis = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh
    left_over = ((x - x.mean(0)) @ basis.T).square().sort(dim=1).values[:, :-2].sum(1)
    torch.testing.assert_close((x - some(x)).square().sum(1), left_over, atol=1e-4, rtol=1e-3)


def test_pca_refuses_more_than_its_pairs() -> None:
    with pytest.raises(ValueError, match=r"k = 5 is more than its 4 pairs.*leave pca out"):
        ARCHITECTURES["pca"].check(SAEConfig(d_in=D, d_sae=9, l0=5))


def test_permuted_is_topk_whose_latents_write_each_others_directions() -> None:
    permuted, topk, x = trained(build("permuted")), trained(build("topk")), activations()
    for trainer in (permuted, topk):
        trainer.finish(1.0)
    assert torch.equal(permuted.sae.encode(x).to_dense(), topk.sae.encode(x).to_dense())
    ours, theirs = permuted.sae.W_dec, topk.sae.W_dec
    order = (ours @ theirs.T).argmax(1)
    assert sorted(order.tolist()) == list(range(F))
    assert torch.equal(ours, theirs[order])
    assert (order == torch.arange(F)).float().mean() < 0.25
    assert (x - permuted.sae(x)).square().sum() > 1.5 * (x - topk.sae(x)).square().sum()


def test_permutations_are_the_seeds() -> None:
    def order(seed: int) -> Tensor:
        trainer = build("permuted", seed=seed)
        before = trainer.sae.W_dec.detach().clone()
        trainer.finish(1.0)
        return (trainer.sae.W_dec @ before.T).argmax(1)

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_checkpoint_in_the_middle_changes_nothing(name: str) -> None:
    whole, first = trained(build(name)), build(name)
    for step in range(4):
        first.step(activations(), step, logged=True)
    state, trainer = first.state_dict(), build(name)
    trainer._restore(state)
    for step in range(4, N_STEPS):
        trainer.step(activations(), step, logged=True)
    for one in (whole, trainer):
        one.finish(3.0)
    assert all(torch.equal(value, parameters(whole.sae)[of]) for of, value in parameters(trainer.sae).items())
    assert whole.log == trainer.log
