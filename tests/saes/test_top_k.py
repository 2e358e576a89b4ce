"""BatchTopK and Matryoshka: their formulas, the batch's rule over parts, and the one threshold of inference."""

import copy
import itertools
from typing import Any

import pytest
import torch
from float64_saes import B, D, F, activations, build, randomise
from toy_trainer import activations as toy_activations
from toy_trainer import started
from twins import assert_twins_agree_on, batchtopk_twin, layouts, matryoshka_twin, step

from sae_bench import ARCHITECTURES, LargestOfBatch, SAEConfig, Step, decode, decode_groups, select
from sae_bench.saes.convert import to_built_in
from sae_bench.saes.kernels import kernels
from sae_bench.saes.layouts import Sparse
from sae_bench.training.checkpoint import flatten, unflatten

DEAD = [(), (9,), (1, 4, 9), (0, 1, 2, 5, 8, 11, 15)]
SIZES = (2, 4, 7, 3)


# --- the losses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3.0, 2.6])
@pytest.mark.parametrize("dead", DEAD, ids=lambda dead: f"{len(dead)} dead")
def test_batchtopk_equals_its_dense_twin(dead: tuple[int, ...], k: float) -> None:
    """None dead, fewer than k_aux = 4, and more; k may be a fraction."""
    sae = randomise(build("batchtopk", l0=k, k_aux=4), theta=0.0)
    twin = lambda p, x: batchtopk_twin(p, x, k, dead, 4)  # noqa: E731
    assert_twins_agree_on(activations(), sae, twin, step(dead=dead), {"theta"})


@pytest.mark.parametrize("dead", DEAD, ids=lambda dead: f"{len(dead)} dead")
def test_matryoshka_equals_its_dense_twin(dead: tuple[int, ...]) -> None:
    sae = randomise(build("matryoshka", k_aux=4, group_shares=(0.125, 0.25, 0.45)), theta=0.0)
    assert sae.group_sizes == [2, 4, 7, 3]
    twin = lambda p, x: matryoshka_twin(p, x, 3, (2, 6, 13, 16), dead, 4)  # noqa: E731
    assert_twins_agree_on(activations(), sae, twin, step(dead=dead), {"theta"})


def test_matryoshka_by_hand() -> None:
    """x = (3, 2), groups of 1 and 1: x_hat_1 = (3, 0), x_hat_2 = (3, 2): the mean of 4 and 0, not 4, not 1."""
    sae = ARCHITECTURES["matryoshka"](SAEConfig(d_in=2, d_sae=2, l0=2, options={"group_shares": (0.5,)}))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
    loss = sae.loss(torch.tensor([[3.0, 2.0]]), step())
    assert loss.x_hat.tolist() == [[3, 2]]
    assert loss.terms["reconstruction"].item() == 0
    assert loss.terms["nested"].item() == loss.total.item() == 2


def test_groups_are_the_paper_s_and_none_is_empty() -> None:
    assert _sizes(65536) == [2048, 4096, 8192, 16384, 34816]
    assert _sizes(24) == [1, 3, 6, 14], "F / 32 is less than one latent"
    for shares in ((0.5, 0.5), (0.5, -0.1), (0.0,)):
        with pytest.raises(ValueError, match="give numbers above 0 whose sum is below 1"):
            ARCHITECTURES["matryoshka"].check(SAEConfig(d_in=D, d_sae=F, l0=3, options={"group_shares": shares}))


def _sizes(d_sae: int) -> list[int]:
    sae: Any = ARCHITECTURES["matryoshka"](SAEConfig(d_in=2, d_sae=d_sae, l0=3))
    assert sum(sae.group_sizes) == d_sae
    return list(sae.group_sizes)


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_group_products_and_their_gradients_equal_those_of_each_group_alone(layout: Any) -> None:
    """Of indices that are not sorted within a token, too."""
    draw = torch.Generator().manual_seed(0)
    x, W_enc, W_dec = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((B, D), (D, F), (F, D)))
    W_enc.requires_grad_()
    W_dec.requires_grad_()
    upstream = torch.randn(B, len(SIZES), D, generator=draw, dtype=torch.float64)
    with kernels(layout):
        z = select(x, W_enc, torch.zeros(F, dtype=torch.float64), lambda z: z.topk(5, dim=1).indices)
        ours = decode_groups(z, W_dec, SIZES)
    ends = list(itertools.accumulate(SIZES, initial=0))
    f = (x @ W_enc) * (z.to_dense().detach() != 0)
    theirs = torch.stack([f[:, a:b] @ W_dec[a:b] for a, b in itertools.pairwise(ends)], 1)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(*(torch.autograd.grad(g, (W_enc, W_dec), upstream) for g in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(ours.sum(1), decode(z, W_dec))


def test_all_nested_reconstructions_cost_one_decoder_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of W_dec that are added up: as many as there are active pairs, as for batchtopk."""
    added, rows = [], Sparse.rows
    monkeypatch.setattr(
        Sparse, "rows", lambda self, v, W, *, clean: (added.append(len(v)), rows(self, v, W, clean=clean))[1]
    )
    for arch in ("batchtopk", "matryoshka"):
        with kernels("sparse"):
            build(arch).loss(activations(), step())
    assert added == [3 * B, 3 * B]


# --- the batch's rule -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", list(layouts()))
@pytest.mark.parametrize("n", [0, 1, 40, 41, 200, 12 * 6, 10_000])
def test_the_largest_of_a_batch_are_the_same_in_parts_ties_included(layout: str, n: int) -> None:
    """Whole numbers, most of them equal to others; parts of 5, 5 and 2 tokens."""
    draw = torch.Generator().manual_seed(n)
    x, W = (torch.randint(-1, 2, shape, generator=draw).float() for shape in ((12, 4), (4, 24)))
    b, parts = torch.zeros(24), x.split(5)
    with layouts()[layout]:
        whole = select(x, W, b, LargestOfBatch(n)).pairs()
        kept = [select(part, W, b, LargestOfBatch(n)).pairs()[2] for part in parts]
        rules = LargestOfBatch(n).split(kept)
        alone = [select(part, W, b, rule).pairs() for part, rule in zip(parts, rules, strict=True)]
    assert sum(rule.n for rule in rules) == len(whole[0]) == min(n, 12 * 24)
    starts = (0, 5, 10)
    found = [
        torch.cat(column)
        for column in zip(*((t + s, i, z) for (t, i, z), s in zip(alone, starts, strict=True)), strict=True)
    ]
    for one, other in zip(found, whole, strict=True):
        assert torch.equal(one, other)


def test_parts_that_are_told_nothing_keep_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is why they are told: a part with large values has more than its share of the batch's largest."""
    sae, x = build("batchtopk"), activations(20) * torch.linspace(0.1, 3, 20)[:, None]
    rules = sae.survey(x.split(10))
    assert sum(rule.n for rule in rules) == 60
    assert rules[0].n < 20 < 40 < rules[1].n


def test_a_batch_in_parts_gives_the_whole_batch_s_least_kept_value() -> None:
    trainer, x = started("batchtopk"), toy_activations(1) * torch.linspace(0.5, 1.5, 40)[:, None]
    trainer.sae.double()
    seen = []
    for trainer.micro_batch in (None, 7):
        seen.append(trainer._loss_with_gradients(x.double(), Step(torch.tensor(0.0), torch.tensor([2]))).seen)
    assert 0 < seen[0]["least_kept"] < torch.inf
    torch.testing.assert_close(seen[1], seen[0])


# --- the threshold ----------------------------------------------------------------------------------------------


def after(sae: Any, *least: float, number: int = 5) -> list[float]:
    """theta after each of some batches, of which this is the least value kept."""
    thetas = []
    for i, value in enumerate(least):
        seen = {"least_kept": torch.tensor(value)}
        with torch.no_grad():
            sae.after_step(
                Step(torch.tensor(0.0), torch.tensor([], dtype=torch.long), number=number + i, n_steps=100, seen=seen)
            )
        assert (sae.theta == sae.theta[0]).all()
        thetas.append(sae.theta[0].item())
    return thetas


def test_the_threshold_by_hand() -> None:
    """Starts at the first value after the warm-up, not at 0; then .75 of the old and .25 of the new."""
    sae = ARCHITECTURES["batchtopk"](
        SAEConfig(d_in=D, d_sae=F, l0=3, options={"threshold_start": 0.05, "threshold_rate": 0.25})
    )
    assert after(sae, 9.0, number=4) == [0.0]
    assert after(sae, 4.0, 8.0, torch.inf, 1.0) == [4.0, 5.0, 5.0, 4.0]


def test_a_run_shorter_than_the_warm_up_has_the_last_batch_s_threshold() -> None:
    sae = ARCHITECTURES["batchtopk"](SAEConfig(d_in=D, d_sae=F, l0=3))
    assert sae.options.threshold_start == 1000
    assert after(sae, 9.0, 4.0, number=98) == [0.0, 4.0]


def test_the_average_is_in_float64() -> None:
    """Steps of 2^-30 of the value are lost in float32."""
    sae = ARCHITECTURES["batchtopk"](
        SAEConfig(d_in=D, d_sae=F, l0=3, options={"threshold_start": 0, "threshold_rate": 2.0**-30})
    )
    after(sae, 1.0, *[2.0] * 64)
    assert sae.mean_least_kept.dtype == torch.float64
    assert sae.mean_least_kept.item() == pytest.approx(1 + 64 * 2.0**-30, abs=1e-14)


def test_training_takes_the_smallest_positive_value_kept() -> None:
    """z = (3, 2) and (1, -5): three are kept, of which -5 is none, whatever k says."""
    sae = ARCHITECTURES["batchtopk"](SAEConfig(d_in=2, d_sae=2, l0=1.5))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
    x = torch.tensor([[3.0, 2.0], [1.0, -5.0]])
    assert sae.loss(x, step()).minima["least_kept"].item() == 1
    assert sae.loss(-x.abs(), step()).minima["least_kept"].item() == torch.inf


def test_a_trained_sae_is_a_jumprelu_with_one_threshold_and_selects_once() -> None:
    """f = z where z > theta, of a token alone; z = theta is off. Folding scales theta once."""
    trainer = started("batchtopk")
    for i in range(20):
        trainer.step(toy_activations(i), i, logged=True)
    trainer.stats.close()
    sae: Any = trainer.sae
    theta = sae.theta[0].item()
    assert 0 < theta == pytest.approx(sae.mean_least_kept.item())
    x = toy_activations(3)
    with torch.no_grad():
        z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        torch.testing.assert_close(sae.encode(x).to_dense(), z * (z > theta))
        trainer.finish(7.0)
        jumprelu: Any = to_built_in(sae)
        torch.testing.assert_close(jumprelu.encode(7 * x).to_dense(), 7 * z * (z > theta))
    assert jumprelu.name == "jumprelu"
    torch.testing.assert_close(jumprelu.theta, torch.full((24,), 7 * theta))


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka", "p_anneal"])
def test_a_checkpoint_carries_the_averages_bit_for_bit(arch: str) -> None:
    whole = started(arch)
    for i in range(30):
        whole.step(toy_activations(i), i, logged=True)
        if i == 16:
            tensors, rest = flatten(whole.state_dict())
            state = unflatten({name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(rest))
    again = started(arch)
    again._restore(state)
    for i in range(17, 30):
        again.step(toy_activations(i), i, logged=True)
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(value, again.sae.state_dict()[name]), name
    buffers = dict(whole.sae.named_buffers())
    assert buffers
    assert all(buffer.dtype == torch.float64 and buffer.isfinite().all() for buffer in buffers.values())


def test_its_k_is_no_coefficient_of_a_jumprelu() -> None:
    sae = ARCHITECTURES["batchtopk"](SAEConfig(d_in=D, d_sae=F, coefficient=3)).fold(1.0)
    assert to_built_in(sae).config.coefficient is None


def test_a_step_in_micro_batches_learns_the_same() -> None:
    """Thirty steps whole and in parts of 7: the same threshold and the same weights, up to rounding."""
    trainers = started("matryoshka"), started("matryoshka")
    trainers[1].micro_batch = 7
    for trainer in trainers:
        trainer.sae.double()
        for i in range(30):
            trainer.step(toy_activations(i).double(), i, logged=True)
    whole, parts = (trainer.sae.state_dict() for trainer in trainers)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, msg=name)
