"""How the active set is stored, and which kernels work on it."""

import json
from pathlib import Path

import pytest
import torch
from test_active import CHUNK, D, F, above, inputs, largest, share

from sae_bench.saes import chunks
from sae_bench.saes.active import decode, latent_major, select
from sae_bench.saes.kernel_choice import crossovers, measure
from sae_bench.saes.kernels import Crossovers, kernels
from sae_bench.saes.layouts import Dense, Sparse


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


def test_chunks_keep_the_buffer_within_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 4 * F * CHUNK)
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
