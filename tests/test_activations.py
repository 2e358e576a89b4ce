"""The activation stream: everything served the stated number of times, shuffled, scaled, in bounded memory.

A counting model stands in for the language model where the books are checked: its activation at a token is a number
that no other token of the stream has, so what was served can be told apart.
"""

from collections import Counter

import pytest
import torch
from tiny import D_MODEL, tiny_gemma2, tiny_gpt_neox, tiny_tokenizer

from sae_bench.activations import ActivationStream
from sae_bench.data import TokenBatch, TokenStream
from sae_bench.lm import LanguageModel
from sae_bench.progress import Progress
from sae_bench.sites import Site, find_site

QUIET = Progress(quiet=True)
ONE, TWO = Site(0, "resid_post", "one", "output", 3), Site(1, "mlp_out", "two", "output", 5)
BOS, CONTEXT = 0, 11


class CountingTokens(TokenStream):
    """Contexts of 10 words after a BOS; the n-th word of the stream is the token n."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens, self.context_size = n_tokens, CONTEXT

    def batches(self, batch_contexts, start_context=0):
        at = 1
        while at <= self.n_tokens:
            words = torch.arange(at, at + batch_contexts * (CONTEXT - 1)).reshape(batch_contexts, -1)
            at += words.numel()
            tokens = torch.cat([torch.full((batch_contexts, 1), BOS), words], dim=1)
            yield TokenBatch(tokens, torch.zeros_like(tokens))


class CountingModel(LanguageModel):
    """The activation at token n is (n, n, ...) at site one and (-n, -n, ...) at site two."""

    def __init__(self) -> None:
        self.device, self.dtype, self.n_passes = torch.device("cpu"), torch.float64, 0
        self.special_ids = frozenset({BOS})

    def capture(self, tokens, sites):
        self.n_passes += 1
        sign = {ONE: 1, TWO: -1}
        return {site: sign[site] * tokens[..., None].double().expand(*tokens.shape, site.d_in) for site in sites}


def make(n_tokens, *, batch=16, buffer=80, reuse=1, seeds=(0,), sites=(ONE,)):
    stream = ActivationStream(
        CountingModel(), CountingTokens(n_tokens), sites,
        batch_size=batch, buffer_tokens=buffer, reuse=reuse, seeds=seeds,
    )  # fmt: skip
    stream.start(QUIET)
    return stream


@pytest.fixture(autouse=True)
def small_passes(monkeypatch):
    monkeypatch.setattr("sae_bench.activations.CAPTURE_TOKENS", {"cpu": 3 * CONTEXT, "cuda": 0})


def served(stream, site=ONE, seed=0) -> list[int]:
    """The tokens served, in order."""
    batches = [batch[site, seed] for batch in stream.batches()]
    assert len(batches) == stream.n_steps
    assert {len(batch) for batch in batches} <= {stream.batch_size}
    assert {batch.dtype for batch in batches} <= {torch.float32}
    return [round(float(x)) for x in torch.cat(batches)[:, 0].abs() * stream.scale[site]]


@pytest.mark.parametrize("reuse", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("n_tokens", "buffer"), [(400, 80), (403, 81), (60, 80), (80, 80), (100, 1000), (40, 80), (41, 80)]
)
def test_every_activation_is_served_exactly_reuse_times(n_tokens, buffer, reuse):
    stream = make(n_tokens, buffer=buffer, reuse=reuse, batch=1)
    assert Counter(served(stream)) == dict.fromkeys(range(1, n_tokens + 1), reuse)
    assert stream.n_captured == n_tokens


@pytest.mark.parametrize(("n_tokens", "reuse", "batch"), [(400, 1, 16), (403, 3, 17), (60, 5, 23), (50, 1, 50)])
def test_batches_are_whole_and_only_the_last_few_draws_are_left_over(n_tokens, reuse, batch):
    stream = make(n_tokens, reuse=reuse, batch=batch)
    counts = Counter(served(stream))
    assert stream.n_steps == n_tokens * reuse // batch
    assert counts.total() == stream.n_steps * batch
    assert max(counts.values()) == reuse
    assert set(counts) <= set(range(1, n_tokens + 1)), "a BOS was served"


def test_the_input_scale_makes_the_mean_squared_norm_one():
    stream = make(40, reuse=1, batch=40, sites=(ONE, TWO))
    (batch,) = stream.batches()
    for site in (ONE, TWO):
        assert float(batch[site, 0].square().sum(1).mean()) == pytest.approx(1, rel=1e-6)
        torch.testing.assert_close(batch[site, 0].mean(0), stream.mean[site])
    assert stream.scale[TWO] == pytest.approx(stream.scale[ONE] * (5 / 3) ** 0.5)


def test_the_scale_is_measured_on_the_first_filling_and_kept():
    stream = make(4000, buffer=80)
    first = torch.arange(1, 41, dtype=torch.float64)
    assert stream.scale[ONE] == pytest.approx(float((3 * first.square()).mean().sqrt()))
    assert max(served(stream)) > 3900


def test_a_sample_is_spread_over_the_first_filling():
    stream = make(400)
    sample = (stream.sample(ONE, 10)[:, 0] * stream.scale[ONE]).round().int().tolist()
    assert sample == list(range(1, 41, 4))
    assert len(stream.sample(ONE, 10_000)) == 40


def test_seeds_get_different_orders_of_the_same_activations():
    stream = make(400, seeds=(4, 9), reuse=2)
    batches = list(stream.batches())
    four, nine = (torch.cat([batch[ONE, seed] for batch in batches])[:, 0] for seed in (4, 9))
    assert not torch.equal(four, nine)
    assert torch.equal(four.sort().values, nine.sort().values)
    assert not torch.equal(four[:160], four[:160].sort().values), "unshuffled"


def test_sites_see_the_same_tokens_in_the_same_order_from_one_capture():
    stream = make(400, sites=(ONE, TWO), seeds=(0, 1))
    for batch in stream.batches():
        for seed in (0, 1):
            one, two = (batch[site, seed][:, 0] * stream.scale[site] for site in (ONE, TWO))
            torch.testing.assert_close(one, -two)
    assert stream.lm.n_passes == -(-400 // 30)  # 3 contexts of 10 words a pass


def test_a_seed_is_served_alike_alone_and_in_company():
    alone, together = make(400, seeds=(9,)), make(400, seeds=(4, 9), sites=(TWO, ONE))
    assert served(alone, seed=9) == served(together, seed=9)


def test_the_same_stream_again_is_the_same():
    assert served(make(403, reuse=3, batch=17)) == served(make(403, reuse=3, batch=17))


def test_draws_are_mixed_over_two_halves_of_the_buffer():
    """A batch from the middle of the stream holds activations of more than one filling."""
    tokens = served(make(400, reuse=4))
    for at in range(320, 1280, 80):
        batch = tokens[at : at + 80]
        assert max(batch) - min(batch) > 40, "one filling is 40 wide"


@pytest.mark.parametrize("n_tokens", [400, 4000])
def test_memory_is_the_buffers_whatever_the_number_of_tokens(n_tokens):
    stream = make(n_tokens, buffer=80, sites=(ONE, TWO), reuse=2)
    sizes = {site: {len(rows)} for site, rows in stream._buffer.items()}
    for _ in stream.batches():
        for site, rows in stream._buffer.items():
            sizes[site].add(len(rows))
        assert len(stream._pending[ONE]) <= 30
    assert sizes == {ONE: {80}, TWO: {80}}


def test_a_short_stream_takes_no_more_memory_than_it_has_tokens():
    assert len(make(30, buffer=10_000)._buffer[ONE]) == 30


@pytest.mark.parametrize(("build", "family"), [(tiny_gemma2, "gemma2"), (tiny_gpt_neox, "gpt_neox")])
def test_of_a_real_model_only_counted_positions_are_served(build, family, corpus, at_work):
    """Against a whole forward pass of each context; <bos> is token 0 in one of the families."""
    lm = LanguageModel(build(), tiny_tokenizer(family), family)
    site = find_site(lm.model, "resid_post", 1)
    tokens = TokenStream(str(corpus), lm.tokenizer, split="train", context_size=16, n_tokens=300, order_seed=0)
    stream = ActivationStream(lm, tokens, [site], batch_size=60, buffer_tokens=128, reuse=1, seeds=[0])
    stream.start(QUIET)
    rows = torch.cat([batch[site, 0] for batch in stream.batches()]) * stream.scale[site]
    expected = torch.cat([lm.capture(batch.tokens, [site])[site][:, 1:].flatten(0, 1) for batch in tokens.batches(4)])
    assert rows.shape == expected.shape == (300, D_MODEL)
    order, theirs = rows[:, 0].argsort(), expected[:, 0].argsort()
    torch.testing.assert_close(rows[order], expected[theirs], rtol=1e-4, atol=1e-4)
