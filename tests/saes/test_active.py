"""The active set against its dense twin: the same values and the same gradients, whatever the layout and the kernels.

Shapes: B tokens, D = d_in, F = d_sae. The twins are three lines of plain torch in float64.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.saes import chunks
from sae_bench.saes.active import Active, as_active, decode, select, select_all
from sae_bench.saes.kernels import kernels
from sae_bench.saes.layouts import Sparse

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
