"""Certified screening against exact selection: no pair is missed, whatever the numbers are.

Shapes: B tokens, D = d_in, F = d_sae.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.saes import chunks, screening
from sae_bench.saes.active import decode, latent_major, select, select_all
from sae_bench.saes.kernels import Crossovers, kernels
from sae_bench.saes.layouts import Dense, Sparse
from sae_bench.saes.rules import Above, Largest, LargestOfBatch, Rule

B, D, F, CHUNK = 23, 16, 96, 7  # 7 does not divide 23

RULES = {
    "above": lambda z: Above(z.flatten().quantile(0.9).item()),
    "above, one for each": lambda z: Above(z.quantile(0.9, dim=0)),
    "largest": lambda z: Largest(5),
    "largest of some": lambda z: Largest(4, among=torch.arange(0, F, 3)),
    "largest by size": lambda z: Largest(5, signed=True),
    "largest by size of some": lambda z: Largest(4, among=torch.arange(0, F, 3), signed=True),
    "all of some": lambda z: Largest(4, among=torch.tensor([2, 50])),
    "largest of the batch": lambda z: LargestOfBatch(5 * B),
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 4 * F * CHUNK)


def kept(x: Tensor, W: Tensor, b: Tensor, rule: Rule, way: str, b_pre: Tensor | None = None) -> Tensor:
    """The values of the pairs that are kept, as a [B, F] matrix, NaN elsewhere."""
    with kernels("sparse", screening=way):  # type: ignore[arg-type]
        token, latent, values = select(x, W, b, rule, b_pre).pairs()
    matrix = torch.full((len(x), W.shape[1]), torch.nan)
    matrix[token, latent] = values.detach()
    return matrix


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, W, b = (torch.randn(shape, generator=draw) for shape in ((B, D), (D, F), (F,)))
    return x + 3, W, b


@st.composite
def awkward(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Factors with enormous, tiny, subnormal and empty dimensions, latents and tokens."""
    x, W, b = inputs(draw(st.integers(0, 10_000)))
    scale = st.sampled_from([0.0, 1e-42, 1e-25, 1e-8, 1.0, 1.0, 1.0, 1e4, 1e15, 1e25])
    for tensor, n in ((x, B), (x.T, D), (W, D), (W.T, F)):
        for _ in range(draw(st.integers(0, 3))):
            tensor[draw(st.integers(0, n - 1))] *= draw(scale)
    return x, W, b * draw(st.sampled_from([0.0, 1e-40, 1.0, 1e6]))


@given(factors=awkward(), name=st.sampled_from(sorted(RULES)), centre=st.booleans())
@settings(max_examples=400, deadline=None)
def test_no_pair_is_missed(factors: tuple[Tensor, Tensor, Tensor], name: str, centre: bool) -> None:
    """Sets are those of exact selection but where float32 cannot tell on which side of the border a pair lies."""
    x, W, b = factors
    b_pre = x.mean(0) if centre else None
    centred = x - b_pre if b_pre is not None else x
    z = torch.addmm(b, centred, W)
    if not z.isfinite().all():
        return
    rule = RULES[name](z)
    exact, found = kept(x, W, b, rule, "off", b_pre), kept(x, W, b, rule, "on", b_pre)
    if isinstance(rule, Above):
        border = torch.as_tensor(rule.threshold).expand_as(z)
    elif isinstance(rule, Largest) and rule.among is None:
        border = rule.size(z).topk(rule.k, dim=1).values[:, -1:].expand_as(z)
    elif isinstance(rule, LargestOfBatch):
        border = z.flatten().topk(rule.n).values[-1].expand_as(z)
    else:
        sizes = rule.size(exact) if isinstance(rule, Largest) else exact
        border = (sizes.nan_to_num(nan=torch.inf)).amin(1, keepdim=True).expand_as(z)
    rounding = (
        D * 2.0**-22 * (torch.linalg.vector_norm(centred.double(), dim=1)[:, None] * W.double().norm(dim=0) + b.abs())
    )
    size = rule.size(z) if isinstance(rule, Largest) else z
    clear = (size.double() - border.double()).abs() > rounding + border.abs().double() * 2**-22 + 1e-37
    assert torch.equal(exact.isnan()[clear], found.isnan()[clear])
    both = ~exact.isnan() & ~found.isnan()
    assert ((exact - found).abs().double() <= rounding + 1e-37)[both].all()


@given(seed=st.integers(0, 10_000), name=st.sampled_from(sorted(RULES)))
@settings(max_examples=200, deadline=None)
def test_where_arithmetic_is_exact_the_sets_are_equal_ties_included(seed: int, name: str) -> None:
    """Whole numbers of 10 bits: not exact in bfloat16, but their float32 sums are. Many values are equal."""
    draw = torch.Generator().manual_seed(seed)
    x, W = (torch.randint(-3, 4, shape, generator=draw) * 331.0 for shape in ((B, D), (D, F)))
    b = torch.randint(-2, 3, (F,), generator=draw) * 331.0**2
    x[:, 0] = 0
    x -= x.mean(0).round()
    rule = RULES[name](x @ W + b)
    exact = kept(x, W, b, rule, "off", torch.zeros(D))
    found = kept(x, W, b, rule, "on", torch.zeros(D))
    torch.testing.assert_close(found, exact, rtol=0, atol=0, equal_nan=True)


@given(factors=awkward(), centred=st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_bound_holds_for_every_pair(factors: tuple[Tensor, Tensor, Tensor], centred: bool) -> None:
    """The product is no less than z, and less than z by no more than twice the bound."""
    x, W, b = factors
    rule = Largest(5)
    x = x - x.mean(0) if centred else x
    tokens, latents = screening._bounded(x, W.T.contiguous(), b, rule, centred)
    if not screening._fits(tokens, latents):
        return
    upper = torch.cat([bound.double() for _, bound in screening._products(tokens, latents, at_once=True)])
    z = x.double() @ W.double() + b.double()
    z *= screening._scales(x if centred else x - x.mean(0), W.T).prod()
    assert (upper * (1 + torch.sign(upper) * 2**-8) >= z - 1e-37).all()
    lower = upper - 2**-7 * upper.abs() - 2 * (tokens.bound[:, :3] @ latents.bound[:, :3].T).double()
    assert (lower <= z + 1e-37).all()


@pytest.mark.parametrize("name", RULES)
def test_gradients_are_those_of_exact_selection(name: str) -> None:
    gradients = {}
    for way in ("off", "on"):
        x, W, b = (tensor.requires_grad_() for tensor in inputs())
        b_pre, W_dec = torch.ones(D, requires_grad=True), inputs(1)[1].T.clone().requires_grad_()
        rule = RULES[name]((x - b_pre).detach() @ W.detach() + b.detach())
        with kernels("sparse", screening=way):  # type: ignore[arg-type]
            f = select(x, W, b, rule, b_pre)
            loss = decode(f, W_dec).square().sum() + f.sum_per_token(f.values)
        gradients[way] = torch.autograd.grad(loss, (x, W, b, b_pre, W_dec))
    for exact, found in zip(gradients["off"], gradients["on"], strict=True):
        assert torch.linalg.vector_norm(found - exact) <= 1e-5 * torch.linalg.vector_norm(exact)


def test_several_rules_share_one_product() -> None:
    x, W, b = inputs()
    rules = Largest(5), Largest(4, among=torch.arange(0, F, 3)), LargestOfBatch(3 * B)
    with kernels("sparse", screening="on"):
        found = select_all(x, latent_major(W), b, rules)
    with kernels("sparse", screening="off"):
        exact = select_all(x, W, b, rules)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.to_dense(), other.to_dense())


def test_equal_values_at_the_border_go_to_the_first() -> None:
    x, W, b = torch.ones(2, 1), torch.ones(1, F), torch.zeros(F)
    for way in ("off", "on"):
        assert kept(x, W, b, Largest(3), way).isnan().logical_not().nonzero()[:, 1].tolist() == [0, 1, 2] * 2
        assert kept(x, W, b, LargestOfBatch(F + 2), way).isnan().logical_not().sum(1).tolist() == [F, 2]
        assert kept(x, W, b, Above(1.0), way).isnan().all(), "z = threshold is not above it"


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("where", ["token", "latent"])
def test_numbers_that_are_not_finite_are_left_to_exact_selection(bad: float, where: str) -> None:
    x, W, b = inputs()
    (x if where == "token" else W)[3, 5] = bad
    exact, found = (kept(x, W, b, Above(2.0), way) for way in ("off", "on"))
    torch.testing.assert_close(found, exact, rtol=0, atol=0, equal_nan=True)


def layout_of(crossovers: Crossovers, rule: Rule) -> tuple[type, int]:
    """The layout, and how many bfloat16 products were made for it."""
    made = []
    x, W, b = inputs()
    with pytest.MonkeyPatch.context() as patch:
        products = screening._products
        patch.setattr(
            screening, "_products", lambda *a, **k: (made.append(chunk) or chunk for chunk in products(*a, **k))
        )
        with kernels("auto", crossovers):
            return type(select(x, W, b, rule).layout), len(made)


def test_too_many_candidates_are_selected_exactly() -> None:
    """The first chunk tells."""
    few, half = Above(25.0), Above(0.0)
    n_chunks = -(-B // CHUNK)
    assert layout_of(Crossovers(0.1, 0.1), few) == (Sparse, n_chunks)
    assert layout_of(Crossovers(0.1, 0.1), half) == (Dense, 1)
    assert layout_of(Crossovers(0.9, 0.1), half) == (Sparse, 1)
    assert layout_of(Crossovers(0.1, 0.0), few) == (Sparse, 0)
    assert layout_of(Crossovers(0.1, 0.1), Largest(F // 2)) == (Dense, 0)


@pytest.mark.parametrize("threshold", [torch.tensor(2.0), torch.tensor([2.0])], ids=["no dimension", "one"])
def test_one_threshold_may_be_a_tensor(threshold: Tensor) -> None:
    """As where it is a parameter that all latents share."""
    x, W, b = inputs()
    exact, found = (kept(x, W, b, Above(threshold), way) for way in ("off", "on"))
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_of_no_latents_none_is_kept() -> None:
    """As where none is dead."""
    x, W, b = inputs()
    none = Largest(4, among=torch.empty(0, dtype=torch.long))
    for way in ("off", "on"):
        assert kept(x, W, b, none, way).isnan().all()


def test_products_are_added_in_float32_and_settings_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the type that is multiplied on a GPU: there torch lets sums be rounded unless it is told otherwise."""
    matmul, seen = torch.backends.cuda.matmul, []

    def settings_now() -> tuple[bool, bool]:
        assert screening.LOW["cuda"] == torch.float16
        return matmul.allow_fp16_reduced_precision_reduction, matmul.allow_fp16_accumulation

    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: (seen.append(settings_now()), mm(*a, **k))[1])
    matmul.allow_fp16_accumulation = True
    try:
        kept(*inputs(), Above(25.0), "on")
        assert set(seen) == {(False, False)}
        assert settings_now() == (True, True)
    finally:
        matmul.allow_fp16_accumulation = False


def test_what_is_not_a_number_does_not_fit_in_whichever_place_it_is() -> None:
    x, W, b = inputs()
    tokens, latents = screening._bounded(x, W.T.contiguous(), b, Largest(5), centred=False)
    assert screening._fits(tokens, latents)
    for side in (tokens, latents):
        for place in range(4):
            before = side.bound[3, place].clone()
            side.bound[3, place] = torch.nan
            assert not screening._fits(tokens, latents)
            side.bound[3, place] = before


def test_a_bias_of_more_digits_than_two_rounded_numbers_hold_costs_no_pair() -> None:
    """b = 1 + 2^-9 + .95 2^-17, and z is .1 2^-17 above zero: less than what rounding takes from b."""
    x, b = torch.ones(1, 3), torch.tensor([1 + 2**-9 + 0.95 * 2**-17])
    W = -torch.tensor([[1.0], [2**-9], [0.85 * 2**-17]]).bfloat16().float()
    for way in ("off", "on"):
        assert kept(x, W, b, Above(0.0), way, torch.zeros(3)).item() == pytest.approx(0.1 * 2**-17, rel=0.2)


def test_what_is_certainly_kept_allows_for_the_rounding_of_the_product() -> None:
    """From 256 on bfloat16 counts in twos: 258 may be 257, which less twice a bound of .4 is written 256."""
    upper, of_tokens = torch.tensor([[258.0]]).bfloat16(), torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert screening._cut(Largest(1), upper, of_tokens, 0.4 * of_tokens) == 256
