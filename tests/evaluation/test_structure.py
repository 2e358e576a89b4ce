"""Geometry and stability on dictionaries whose answers are known, and what is told by position and by frequency."""

import math

import pytest
import torch
from torch import Tensor

from sae_bench import ARCHITECTURES, TASKS, EvalBatch, EvalSetting, Result, SAEConfig, SparseAutoencoder
from sae_bench.evaluation.task import LMLosses
from sae_bench.saes.active import latent_major

CPU = torch.device("cpu")
ROOT = math.sqrt(0.5)


def sae_of(rows: Tensor, columns: Tensor | None = None) -> SparseAutoencoder:
    """A relu SAE with these decoder rows, and encoder columns that are the same unless they are given."""
    sae = ARCHITECTURES["relu"](SAEConfig(d_in=rows.shape[1], d_sae=len(rows), coefficient=1.0)).requires_grad_(False)
    sae.W_dec.copy_(rows)
    sae.W_enc.data = latent_major((rows if columns is None else columns).T)
    return sae


def run(task_name: str, sae: SparseAutoencoder, x: Tensor, siblings: tuple[SparseAutoencoder, ...] = ()) -> Result:
    task = TASKS[task_name]()
    task.start(EvalSetting(sae, x.double().mean(0), len(x), CPU, siblings))
    f = sae.encode(x)
    task.update(EvalBatch(x, f, sae.decode(f), torch.arange(len(x)), None))  # type: ignore[arg-type]
    return task.finish()


def values(result: Result) -> dict[str, float | None]:
    return {name: score.value for name, score in result.scores.items()}


def data(n: int = 40, d_in: int = 4) -> Tensor:
    return 3 + torch.randn(n, d_in, generator=torch.Generator().manual_seed(0))


def test_cosines_of_rows_by_hand() -> None:
    # e1, e2, their diagonal at twice the norm, and -e1: |cosines| 0, r, 1, r, 0, r.
    rows = torch.tensor([[1.0, 0], [0, 1], [2 * ROOT, 2 * ROOT], [-1, 0]])
    found = values(run("geometry", sae_of(rows), data(d_in=2)))
    assert found["c_dec"] == pytest.approx((3 * ROOT + 1) / 6)
    assert found["max_decoder_cosine"] == pytest.approx((ROOT + ROOT + ROOT + 0) / 4)
    assert found["antipodal_share"] == pytest.approx(0.5)


def test_only_what_looked_at_tokens_counts_them() -> None:
    rows = torch.randn(32, 6, generator=torch.Generator().manual_seed(2))
    x = data(n=40, d_in=6)
    counted = {name: score.n for task in ("geometry", "stability") for name, score in run(
        task, sae_of(rows), x, (sae_of(rows.flip(0)),)
    ).scores.items()}  # fmt: skip
    none = {"c_dec", "max_decoder_cosine", "antipodal_share", "pw_mcc", "shared_share"}
    assert {name for name, n in counted.items() if n == 0} == none
    assert {n for name, n in counted.items() if name not in none} == {40}


def test_an_orthogonal_dictionary_has_no_cosines() -> None:
    found = values(run("geometry", sae_of(torch.eye(5)), data(d_in=5)))
    assert (found["c_dec"], found["max_decoder_cosine"], found["antipodal_share"]) == (0, 0, 0)


def test_the_nth_projection_by_hand() -> None:
    # n = round(3/8 * 8) = 3, counted from 0: of projections 9 .. 1 the fourth, of rows of norm one whatever theirs is.
    sae = sae_of(torch.diag(torch.linspace(1, 3, 9)))
    sae.b_dec.fill_(2.0)
    x = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3, 2, 1], [0, 0, 0, 0, 4, 0, 0, 0, 3]]) + 2
    norms = math.sqrt(285) + 5
    assert values(run("geometry", sae, x))["nth_projection"] == pytest.approx((6 + 0) / norms)


def test_wide_dictionaries_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(600, 8, generator=torch.Generator().manual_seed(1))
    whole = values(run("geometry", sae_of(rows), data(d_in=8)))
    module = __import__(TASKS["geometry"].__module__, fromlist=["MAX_ROWS"])
    monkeypatch.setattr(module, "MAX_ROWS", 200)
    sampled = run("geometry", sae_of(rows), data(d_in=8))
    assert sampled.details["rows"] == 200
    assert values(sampled)["c_dec"] == pytest.approx(whole["c_dec"], rel=0.02)


def test_an_sae_is_stable_against_itself_and_against_itself_in_another_order() -> None:
    rows = torch.randn(32, 6, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    x = data(d_in=6)
    own = values(run("stability", sae_of(rows), x, (sae_of(rows[order]), sae_of(rows))))
    assert own["pw_mcc"] == pytest.approx(1)
    assert own["pw_mcc_alive"] == pytest.approx(1)
    assert own["shared_share"] == 1
    reconstruction = values(run("reconstruction", sae_of(rows), x))
    assert own["fve_shared"] == pytest.approx(reconstruction["fve"])


def test_half_of_the_latents_in_common_is_a_half() -> None:
    eye, half = torch.eye(8), torch.tensor([[1.0, 1], [1, -1]])
    mixed = torch.cat([eye[:4], 0.5 * torch.kron(half, half) @ eye[4:]])  # whichever way: a cosine of one half
    found = run("stability", sae_of(eye), data(d_in=8), (sae_of(mixed),))
    assert found.scores["pw_mcc"].value == pytest.approx(0.75)
    assert found.scores["shared_share"].value == 0.5
    assert found.scores["pw_mcc"].stderr is None  # one other seed does not say how much seeds differ


def test_what_shared_latents_explain_by_hand() -> None:
    # Of two latents the second is another's too: the first is left out of x_hat.
    sae, other = sae_of(torch.eye(2)), sae_of(torch.tensor([[-1.0, 0], [0, 1]]))
    x = torch.tensor([[1.0, 2], [3, 6], [5, 1]])
    found = run("stability", sae, x, (other,))
    error, variance = x[:, 0].square().sum(), (x - x.mean(0)).square().sum()
    assert found.scores["shared_share"].value == 0.5
    assert found.scores["fve_shared"].value == pytest.approx(float(1 - error / variance))


def test_a_shared_latent_is_shared_in_the_encoder_too() -> None:
    sae = sae_of(torch.eye(4))
    found = run("stability", sae, data(), (sae_of(torch.eye(4), columns=torch.eye(4)[[1, 0, 2, 3]]),))
    assert found.scores["pw_mcc"].value == 1
    assert found.scores["shared_share"].value == 0.5


@pytest.mark.parametrize("arch", ["abs_topk", "matching_pursuit"])
def test_a_turned_latent_is_the_same_only_where_its_activations_have_a_sign(arch: str) -> None:
    """The other seed's second latent points the other way, in the decoder and (if it has one) in the encoder."""
    sae, other = (ARCHITECTURES[arch](SAEConfig(d_in=4, d_sae=4, l0=2)).requires_grad_(False) for _ in range(2))
    turned = torch.diag(torch.tensor([1.0, -1, 1, 1]))
    for one, rows in ((sae, torch.eye(4)), (other, turned)):
        one.W_dec.copy_(rows)
        if not one.tied:
            one.W_enc.data = latent_major(rows.T)
    found = run("stability", sae, data(), (other,))
    assert found.scores["pw_mcc"].value == 1
    assert found.scores["shared_share"].value == (1 if sae.signed else 0.75)


def test_greedy_matching_finds_what_is_close_enough_and_never_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__(TASKS["stability"].__module__, fromlist=["MAX_HUNGARIAN"])
    generator = torch.Generator().manual_seed(4)
    rows = torch.nn.functional.normalize(torch.randn(200, 12, generator=generator), dim=1)
    order = torch.randperm(200, generator=generator)
    others = rows[order] + 0.02 * torch.randn(200, 12, generator=generator)
    partner = module._greedy(rows, torch.nn.functional.normalize(others, dim=1))
    assert partner == order.argsort().tolist()
    copies = [partner for partner in module._greedy(rows[0].repeat(200, 1), rows) if partner >= 0]
    assert len(set(copies)) == len(copies) == module.CLOSE  # each close one once, and for the other copies none
    monkeypatch.setattr(module, "MAX_HUNGARIAN", 100)
    found = run("stability", sae_of(rows), data(d_in=12), (sae_of(rows[order]),))
    assert found.details["greedy"]
    assert found.scores["pw_mcc"].value == pytest.approx(1)


def test_without_another_seed_there_is_no_value_and_a_remedy() -> None:
    found = run("stability", sae_of(torch.eye(4)), data())
    assert {score.value for score in found.scores.values()} == {None}
    assert all("--seed" in (score.note or "") for score in found.scores.values())


def test_sums_by_position_and_by_frequency_are_those_of_octaves() -> None:
    x = data(6, 2)
    task = TASKS["reconstruction"]()
    sae = sae_of(torch.eye(2))
    task.start(EvalSetting(sae, x.double().mean(0), 1, CPU))
    position, none = torch.tensor([1, 2, 3, 4, 7, 8]), torch.zeros(6, dtype=torch.long)
    task.update(EvalBatch(x, sae.encode(x), x + 1, none, None, position))  # type: ignore[arg-type]
    by = task.finish().details["by_position"]
    assert by["from"][:4] == [1, 2, 4, 8]
    assert by["tokens"][:5] == [1, 2, 2, 1, 0]
    assert by["squared_error"][:5] == pytest.approx([2, 4, 4, 2, 0])

    loss = TASKS["delta_lm_loss"]()
    loss.start(EvalSetting(sae, x.double().mean(0), 1, CPU))
    nats = torch.arange(6.0)
    losses = LMLosses(none, nats, nats + 2, nats, nats, nats, frequency=torch.tensor([1, 1, 2, 3, 9, 15]))
    loss.update(EvalBatch(x, sae.encode(x), x, none, losses))  # type: ignore[arg-type]
    by = loss.finish().details["by_frequency"]
    assert by["predictions"][:4] == [2, 2, 0, 2]
    assert by["added"][:4] == [4, 4, 0, 4]
    assert by["clean"][:4] == [1, 5, 0, 9]
