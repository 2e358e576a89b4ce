"""The active set against its dense twin: the same values and the same gradients, whatever the layout and the kernels.

Shapes: B tokens, D = d_in, F = d_sae. The twins are three lines of plain torch in float64.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.saes import chunks
from sae_bench.saes.active import Active, as_active, decode, latent_major, select, select_all
from sae_bench.saes.kernel_choice import crossovers, measure
from sae_bench.saes.kernels import Crossovers, kernels
from sae_bench.saes.layouts import Dense, Sparse

B, D, F, CHUNK = 23, 6, 40, 7  # 7 does not divide 23

Keep = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 4 * F * CHUNK)


@pytest.fixture(params=["sparse", "dense"])
def either_kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    with kernels(request.param):
        yield


def above(cut: float) -> Keep:
    return lambda z: z > cut


def largest(k: int) -> Keep:
    return lambda z: z.topk(k, dim=1, sorted=False).indices


def mask_of(keep: Keep, z: Tensor) -> Tensor:
    """What a rule keeps, as a [B, F] matrix of zeros and ones."""
    kept = keep(z.detach())
    return kept.double() if kept.dtype == torch.bool else torch.zeros_like(z).scatter(1, kept, 1.0).detach()


def inputs(seed: int = 0, n_tokens: int = B) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"x": (n_tokens, D), "W_enc": (D, F), "b_enc": (F,), "b_pre": (D,), "W_dec": (F, D), "b_dec": (D,)}
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=draw).requires_grad_() for name, shape in shapes.items()
    }


def pre_activations(p: dict[str, Tensor]) -> Tensor:
    return (p["x"] - p["b_pre"]) @ p["W_enc"] + p["b_enc"]


def share(of_pairs: float) -> Keep:
    """A mask that keeps this share of the pairs of `inputs()`."""
    return above(pre_activations(inputs()).quantile(1 - of_pairs).item())


def sparse_path(p: dict[str, Tensor], keeps: list[Keep]) -> Tensor:
    """A scalar that depends on every value: both rules share one encoder product, each has f = sin(z) z."""
    total = torch.zeros((), dtype=torch.float64)
    for i, z in enumerate(select_all(p["x"], p["W_enc"], p["b_enc"], keeps, p["b_pre"])):
        x_hat = decode(z.with_values(z.values.sin() * z.values), p["W_dec"], p["b_dec"])
        total = total + (x_hat - 2 * p["x"]).pow(3).sum() + (i + 2) * z.sum_per_token(z.values.cos())
        total = total + z.sum_of_each_token(z.values.cos()).pow(3).sum()
    return total


def dense_twin(p: dict[str, Tensor], keeps: list[Keep]) -> Tensor:
    z = pre_activations(p)
    total = torch.zeros((), dtype=torch.float64)
    for i, keep in enumerate(keeps):
        mask = mask_of(keep, z)
        x_hat = (z.sin() * z * mask) @ p["W_dec"] + p["b_dec"]
        total = total + (x_hat - 2 * p["x"]).pow(3).sum() + (i + 2) * (z.cos() * mask).sum() / len(z)
        total = total + (z.cos() * mask).sum(1).pow(3).sum()
    return total


def assert_twins_agree(keeps: list[Keep], p: dict[str, Tensor]) -> None:
    ours, theirs = sparse_path(p, keeps), dense_twin(p, keeps)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    gradients = zip(
        torch.autograd.grad(ours, list(p.values())), torch.autograd.grad(theirs, list(p.values())), strict=True
    )
    for name, (mine, his) in zip(p, gradients, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


RULES = {
    "0.1%": [share(0.001)],
    "5%": [share(0.05)],
    "60%": [share(0.6)],
    "all": [above(-1e9)],
    "none": [above(1e9)],
    "top 1": [largest(1)],
    "top 9": [largest(9)],
    "all by index": [largest(F)],
    "a mask and indices": [above(3.0), largest(4)],
    "one empty, one not": [above(1e9), above(1.0)],
}


@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("keeps", RULES.values(), ids=RULES)
def test_values_and_all_gradients_equal_the_dense_twin(keeps: list[Keep]) -> None:
    assert_twins_agree(keeps, inputs())


@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("n_tokens", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_any_number_of_tokens_fits_the_chunks(n_tokens: int) -> None:
    assert_twins_agree([above(1.0), largest(3)], inputs(1, n_tokens))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_pattern_equals_its_dense_twin(data: st.DataObject) -> None:
    """Tokens with no active latent, latents that never fire, repeated rows: whatever the pattern."""
    n_tokens = data.draw(st.integers(1, 17), "tokens")
    rows = st.lists(st.booleans(), min_size=F, max_size=F) | st.just([False] * F) | st.just([True] * F)
    pattern = torch.tensor(data.draw(st.lists(rows, min_size=n_tokens, max_size=n_tokens), "pattern"))

    class Rule:
        """Keeps what the pattern says, chunk after chunk."""

        def __init__(self) -> None:
            self.start = 0

        def __call__(self, z: Tensor) -> Tensor:
            rows = pattern[self.start : self.start + len(z)]
            self.start += len(z)
            return rows

    p = inputs(2, n_tokens)
    with kernels(data.draw(st.sampled_from(["sparse", "dense", "auto"]), "kernels")):
        ours = sparse_path(p, [Rule()])
    theirs = dense_twin(p, [Rule()])
    torch.testing.assert_close(ours, theirs)
    for mine, his in zip(
        torch.autograd.grad(ours, list(p.values())), torch.autograd.grad(theirs, list(p.values())), strict=True
    ):
        torch.testing.assert_close(mine, his)


@pytest.mark.usefixtures("either_kernel")
def test_gradients_equal_finite_differences() -> None:
    draw = torch.Generator().manual_seed(3)
    shapes = [(5, 3), (3, 8), (8,), (3,), (8, 3), (3,)]
    arguments = [torch.randn(s, dtype=torch.float64, generator=draw).requires_grad_() for s in shapes]

    def autoencoder(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        z = select(x, W_enc, b_enc, above(0.5), b_pre)
        f = z.with_values(z.values * z.per_latent(b_enc.exp()))
        return decode(f, W_dec, b_dec)

    assert torch.autograd.gradcheck(autoencoder, arguments, eps=1e-7)


@pytest.mark.usefixtures("either_kernel")
def test_float32_agrees_to_rounding() -> None:
    p = inputs(4)
    singles = {name: value.detach().float().requires_grad_() for name, value in p.items()}
    f = select(singles["x"], singles["W_enc"], singles["b_enc"], largest(5), singles["b_pre"])
    x_hat = decode(f, singles["W_dec"], singles["b_dec"])
    z = pre_activations(p)
    torch.testing.assert_close(
        x_hat.double(), (z * mask_of(largest(5), z)) @ p["W_dec"] + p["b_dec"], rtol=1e-4, atol=1e-4
    )


def test_only_gradients_asked_for_are_computed() -> None:
    p = {name: value.detach() for name, value in inputs().items()}
    p["b_dec"].requires_grad_()
    W_dec = p["W_dec"].clone().requires_grad_()
    decode(select(p["x"], p["W_enc"], p["b_enc"], above(1.0), p["b_pre"]), W_dec, p["b_dec"]).sum().backward()
    assert W_dec.grad is not None
    assert p["b_dec"].grad.tolist() == [B] * D


# --- by hand ----------------------------------------------------------------------------------------------------


def hand_made() -> Active:
    """Tokens 0, 1, 2, 3 of 3 latents; token 1 has no pair, and the pair (2, 0) is not above zero."""
    pairs = Sparse(torch.tensor([0, 0, 2, 2, 3]), torch.tensor([2, 0, 0, 1, 2]), 4, 3)
    return Active(pairs, torch.tensor([5.0, 3.0, 0.0, 2.0, 7.0]))


def test_counts_by_hand() -> None:
    f = hand_made()
    assert f.layout.offsets.tolist() == [0, 2, 2, 4, 5]
    assert f.active_per_token().tolist() == [2, 0, 1, 1]
    assert f.count_per_latent().tolist() == [[1, 1, 2]]
    assert f.to_dense().tolist() == [[3, 0, 5], [0, 0, 0], [0, 2, 0], [0, 0, 7]]


def test_counts_are_kept_apart_by_group() -> None:
    group = torch.tensor([1, 0, 1, 0])
    assert hand_made().count_per_latent(group, 3).tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 0]]


def test_sum_per_token_divides_by_all_tokens() -> None:
    f = hand_made()
    assert f.sum_per_token(f.values).item() == 17 / 4
    assert f.sum_of_each_token(f.values).tolist() == [8, 0, 2, 7]


def test_per_latent_looks_up_and_gathers_the_gradient() -> None:
    theta = torch.tensor([10.0, 20.0, 30.0], requires_grad=True)
    looked_up = hand_made().per_latent(theta)
    assert looked_up.tolist() == [30, 10, 10, 20, 30]
    (looked_up * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert theta.grad.tolist() == [5, 4, 6]


@pytest.mark.usefixtures("either_kernel")
def test_an_empty_set_reconstructs_the_decoder_bias() -> None:
    p = inputs()
    f = select(p["x"], p["W_enc"], p["b_enc"], above(1e9), p["b_pre"])
    assert [len(part) for part in f.pairs()] == [0, 0, 0]
    assert f.count_per_latent().tolist() == [[0] * F]
    assert torch.equal(decode(f, p["W_dec"], p["b_dec"]), p["b_dec"].expand(B, D))


def test_decode_without_bias_adds_none() -> None:
    W_dec, b_dec = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([100.0, 200.0])
    assert decode(hand_made(), W_dec).tolist() == [[28, 36], [0, 0], [6, 8], [35, 42]]
    assert decode(hand_made(), W_dec, b_dec).tolist() == [[128, 236], [100, 200], [106, 208], [135, 242]]


# --- a plain tensor, as an architecture that is written densely returns it --------------------------------------


def test_a_plain_tensor_becomes_the_active_set_with_its_values():
    f = torch.tensor([[0.0, 3, 0], [2, 0, 1], [0, 0, 0]])
    active = as_active(f)
    assert torch.equal(active.to_dense(), f)
    assert active.is_dense
    assert active.active_per_token().tolist() == [1, 2, 0]
    assert active.count_per_latent(torch.tensor([1, 0, 1]), 2).tolist() == [[1, 0, 1], [0, 1, 0]]
    assert [part.tolist() for part in active.pairs()] == [[0, 1, 1], [1, 0, 2], [3, 2, 1]]
    assert as_active(active) is active


def test_a_plain_tensor_keeps_the_gradient_of_its_zeros():
    """A straight-through estimator passes one where the value is zero."""
    p = inputs()
    f = torch.where(torch.arange(B * F).reshape(B, F) % 3 == 0, 1.0, 0.0).double().requires_grad_()
    found = torch.autograd.grad(decode(as_active(f), p["W_dec"], p["b_dec"]).square().sum(), [f, p["W_dec"]])
    twin = torch.autograd.grad((f @ p["W_dec"] + p["b_dec"]).square().sum(), [f, p["W_dec"]])
    assert (twin[0][f == 0] != 0).all()
    torch.testing.assert_close(found, twin)


def test_a_plain_tensor_hides_no_latent_below_zero():
    assert as_active(torch.tensor([[0.0, -1.0]])).to_dense().tolist() == [[0, -1]]


# --- kernels and layout -----------------------------------------------------------------------------------------


def dense_at(density: float) -> bool:
    """Whether a set of this density is worked on with dense products."""
    x, W = torch.ones(1, 1), torch.arange(1000.0)[None]
    return isinstance(select(x, W, torch.zeros(1000), above(999.5 - 1000 * density)).layout, Dense)


def test_kernels_chooses_within_the_block_and_restores_after_it() -> None:
    assert [dense_at(share) for share in (0.0, 0.09, 0.11, 1.0)] == [False, False, True, True]
    with kernels("dense"):
        assert dense_at(0.0)
        with kernels("sparse"):
            assert not dense_at(1.0)
        assert dense_at(0.0)
    with kernels("auto", measured=Crossovers(dense_above=0.4)):
        assert [dense_at(share) for share in (0.39, 0.41)] == [False, True]
    assert [dense_at(share) for share in (0.09, 0.11)] == [False, True]


def test_kernels_restores_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside"), kernels("dense"):
        raise RuntimeError("inside")
    assert not dense_at(0.05)


def test_indices_choose_the_layout_as_masks_do() -> None:
    p = inputs()
    for k, layout in ((F // 10, Sparse), (F // 10 + 1, Dense)):
        assert isinstance(select(p["x"], p["W_enc"], p["b_enc"], largest(k)).layout, layout)


def test_chunks_keep_the_buffer_within_its_bytes() -> None:
    assert chunks.chunk_size(F, torch.device("cpu")) == CHUNK
    assert chunks.chunk_size(10**9, torch.device("cpu")) == 1


def test_latent_major_is_a_copy_stored_latent_by_latent() -> None:
    for W in (torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(3, 2).T):
        stored = latent_major(W)
        assert torch.equal(stored, W)
        assert stored.T.is_contiguous()
        stored.zero_()
        assert W.sum() == 15


def test_the_gradient_of_W_enc_is_stored_as_W_enc_is() -> None:
    p = {name: value.detach().float() for name, value in inputs().items()}
    W_enc = latent_major(p["W_enc"]).requires_grad_()
    for choice in ("sparse", "dense"):
        with kernels(choice):
            f = select(p["x"], W_enc, p["b_enc"], above(1.0))
        (gradient,) = torch.autograd.grad(decode(f, p["W_dec"]).sum(), W_enc)
        assert gradient.T.is_contiguous()


def test_the_measured_density_is_a_share() -> None:
    found = measure(8, 64, 32, torch.device("cpu"))
    assert 0 < found.dense_above <= 1
    assert 0 <= found.screen_below <= 1


def test_the_kernels_are_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that is repeated must round as it did before, so it must not choose its kernels anew."""
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path))
    timings = iter([Crossovers(0.25, 0.01), Crossovers(0.5, 0.0)])
    monkeypatch.setattr("sae_bench.saes.kernel_choice.measure", lambda *shape: next(timings))
    asked = [crossovers(8, d_sae, 32, torch.device("cpu")) for d_sae in (64, 64, 128, 64)]
    assert asked == [(0.25, 0.01), (0.25, 0.01), (0.5, 0.0), (0.25, 0.01)]


def test_a_damaged_measurement_is_taken_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("sae_bench.saes.kernel_choice.measure", lambda *shape: Crossovers(0.25, 0.01))
    (tmp_path / "crossovers.json").write_text('{"cut o')
    assert crossovers(8, 64, 32, torch.device("cpu")) == (0.25, 0.01)
    assert "measured anew" in caplog.text
    assert "0.25" in (tmp_path / "crossovers.json").read_text()


def test_a_measurement_of_an_earlier_version_is_taken_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which was one number."""
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("sae_bench.saes.kernel_choice.measure", lambda *shape: Crossovers(0.25, 0.01))
    assert crossovers(8, 64, 32, torch.device("cpu")) == (0.25, 0.01)
    file = tmp_path / "crossovers.json"
    file.write_text(json.dumps(dict.fromkeys(json.loads(file.read_text()), 0.5)))
    assert crossovers(8, 64, 32, torch.device("cpu")) == (0.25, 0.01)
    assert crossovers(8, 64, 32, torch.device("cpu")) == (0.25, 0.01)
    assert caplog.text.count("crossovers.json is damaged, unreadable or of an earlier version") == 1


@torch.no_grad()
def test_kernels_are_measured_where_no_gradients_are_wanted() -> None:
    """As in an evaluation."""
    assert measure(8, 64, 32, torch.device("cpu")).dense_above > 0


def test_gathered_products_are_the_sampled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is used on GPUs, the second on CPUs."""
    p = inputs()
    with kernels("sparse"):
        layout = select(p["x"], p["W_enc"], p["b_enc"], share(0.2), p["b_pre"]).layout
    assert isinstance(layout, Sparse)
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 4 * D * 50)  # 184 pairs, 50 at a time
    x, W = p["x"].detach(), p["W_dec"].detach()
    torch.testing.assert_close(layout._gathered(x, W), layout._sampled_product(x, W))


@pytest.mark.parametrize("choice", ["sparse", "dense"])
@pytest.mark.parametrize("clean", [True, False])
def test_the_mean_per_latent_is_that_of_the_matrix_and_padding_gets_no_gradient(choice, clean) -> None:
    generator = torch.Generator().manual_seed(3)
    x, W = torch.randn(7, 4, generator=generator), torch.randn(4, 9, generator=generator).requires_grad_()
    weights = torch.rand(9, generator=generator)
    with kernels(choice):
        z = select(x, W, torch.zeros(9), lambda pre: pre > 0.5)
        f = z.with_values(z.values + 2.0) if not clean else z  # padding would hold a two
        assert f.clean == clean
        (f.mean_per_latent() * weights).sum().backward()
    got = W.grad.clone()
    W.grad = None
    pre = x @ W
    dense = torch.where(pre > 0.5, pre + (0.0 if clean else 2.0), 0.0)
    torch.testing.assert_close(f.mean_per_latent().detach(), dense.mean(0).detach())
    (dense.mean(0) * weights).sum().backward()
    torch.testing.assert_close(got, W.grad)


def test_values_that_are_zero_where_the_others_are_stay_clean() -> None:
    x, W = torch.randn(5, 4), torch.randn(4, 6)
    with kernels("dense"):
        z = select(x, W, torch.zeros(6), lambda pre: pre > 0)
    assert z.with_values(2 * z.values, zero_at_zero=True).clean
    assert not z.with_values(2 * z.values).clean
    assert not z.with_values(z.values + 1).with_values(z.values, zero_at_zero=True).clean
