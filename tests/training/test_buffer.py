"""The activation buffer: everything served the stated number of times, shuffled, scaled, in bounded memory.

A counting model stands in for the language model where what is served is counted: its activation at a token is a number
that no other token of the stream has, so what was served can be told apart. Every test runs twice, with capture and
training in turn and with capture overlapping training.
"""

from collections import Counter

import pytest
import torch
from tiny import D_MODEL, tiny_gemma2, tiny_gpt_neox, tiny_tokenizer
from torch.multiprocessing.reductions import StorageWeakRef

from sae_bench.errors import UserError
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site, find_site
from sae_bench.lm.tokens import TokenBatch, TokenStream
from sae_bench.progress import Progress
from sae_bench.training.buffer import ActivationBuffer
from sae_bench.training.serving import Serving, buffer_bytes

QUIET = Progress(quiet=True)
ONE, TWO = Site(0, "resid_post", "one", "output", 3), Site(1, "mlp_out", "two", "output", 5)
BOS, CONTEXT = 0, 11


class CountingTokens(TokenStream):
    """Contexts of 10 words after a BOS; the n-th word of the stream is the token n."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens, self.context_size, self.source, self.n_delivered = n_tokens, CONTEXT, "numbers", 0
        self.n_documents, self.passes, self.sizes, self.words = 0, 1, Counter(), Counter()

    @property
    def fingerprint(self) -> str:
        return f"{self.n_delivered} words"

    def batches(self, batch_contexts, start_context=0):
        at = 1 + start_context * (CONTEXT - 1)
        while at <= self.n_tokens:
            words = torch.arange(at, at + batch_contexts * (CONTEXT - 1)).reshape(batch_contexts, -1)
            at += words.numel()
            self.n_delivered = at - 1
            tokens = torch.cat([torch.full((batch_contexts, 1), BOS), words], dim=1)
            yield TokenBatch(tokens, torch.zeros_like(tokens))


class CountingModel:
    """The activation at token n is (n, n, ...) at site one and (-n, -n, ...) at site two."""

    name, revision, no_language_model, precision = "counting", None, "it counts", "float64"
    n_layers, d_model, n_bytes = 1, 3, 0
    weight_hash = identity = tokenizer_hash = token_flops = find_sites = stream = (
        NotImplemented  # not asked for in training
    )

    def __init__(self) -> None:
        self.device, self.dtype, self.n_passes = torch.device("cpu"), torch.float64, 0
        self.special_ids = frozenset({BOS})

    def capture(self, tokens, sites, *, check):
        assert not check, "the device would be waited for at every pass"
        self.n_passes += 1
        sign = {ONE: 1, TWO: -1}
        return {site: sign[site] * tokens[..., None].double().expand(*tokens.shape, site.d_in) for site in sites}


def make(n_tokens, *, batch=16, buffer=80, reuse=1, seeds=(0,), sites=(ONE,), overlap=None, reserved=0):
    serving = Serving(batch, buffer, reuse, seeds, overlap, reserved)
    return ActivationBuffer(CountingModel(), CountingTokens(n_tokens), sites, serving, QUIET)


@pytest.fixture(autouse=True)
def small_passes(monkeypatch):
    monkeypatch.setattr("sae_bench.training.capture.CAPTURE_TOKENS", {"cpu": 3 * CONTEXT, "cuda": 0})


@pytest.fixture(params=[False, True], ids=["in_turn", "overlapping"], autouse=True)
def room(request, monkeypatch):
    """Whether the device has room for a third half, and hence whether a stream left to itself overlaps."""
    monkeypatch.setattr("sae_bench.training.buffer.has_room", lambda device, n_bytes: request.param)
    return request.param


def served(stream, site=ONE, seed=0) -> list[int]:
    """The tokens served, in order."""
    batches = [batch[site, seed] for batch in stream.batches()]
    assert len(batches) == stream.n_steps
    assert {len(batch) for batch in batches} <= {stream.serving.batch_size}
    assert {batch.dtype for batch in batches} <= {torch.float32}
    return [round(float(x)) for x in torch.cat(batches)[:, 0].abs() * stream.scale[site]]


SIZES = [(400, 80), (403, 81), (60, 80), (80, 80), (100, 1000), (40, 80), (41, 80)]


@pytest.mark.parametrize("reuse", [1, 2, 3, 5])
@pytest.mark.parametrize(("n_tokens", "buffer"), SIZES)
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
def test_memory_is_the_buffers_whatever_the_number_of_tokens(n_tokens, room):
    stream = make(n_tokens, buffer=80, sites=(ONE, TWO), reuse=2)
    size = 120 if room else 80
    for _ in stream.batches():
        assert {site: len(rows) for site, rows in stream._buffer.items()} == {ONE: size, TWO: size}
        if stream._capture._pending is not None:
            assert {site: len(x) for site, x in stream._capture._pending[0].items()} == dict.fromkeys(
                (ONE, TWO), 3 * CONTEXT
            )


def test_what_a_pass_captured_is_gone_before_the_next_pass(monkeypatch):
    kept, capture = [], CountingModel.capture

    def watched(lm, tokens, sites, *, check):
        assert all(storage.expired() for storage in kept)
        captured = {site: x.contiguous() for site, x in capture(lm, tokens, sites, check=check).items()}
        kept.extend(StorageWeakRef(x.untyped_storage()) for x in captured.values())
        return captured

    monkeypatch.setattr(CountingModel, "capture", watched)
    assert len(served(make(403, reuse=3, sites=(ONE, TWO)))) > 1000
    assert len(kept) == 2 * 14


@pytest.mark.parametrize(("n_tokens", "buffer"), [(400, 80), (403, 81), (60, 80), (30, 10_000), (100, 80), (130, 80)])
def test_the_stated_bytes_are_those_of_the_buffer(n_tokens, buffer, room):
    stream = make(n_tokens, buffer=buffer, sites=(ONE, TWO))
    allocated = sum(rows.untyped_storage().nbytes() for rows in stream._buffer.values())
    assert buffer_bytes([ONE, TWO], torch.float64, n_tokens, buffer, overlap=room) == allocated


@pytest.mark.parametrize(("n_tokens", "staged"), [(60, 0), (80, 0), (81, 1), (120, 1), (4000, 1)])
def test_a_third_half_is_made_only_for_activations_to_put_there(n_tokens, staged):
    two, three = (buffer_bytes([ONE], torch.bfloat16, n_tokens, 80, overlap=overlap) for overlap in (False, True))
    assert two == 80 * 3 * 2
    assert three == two + staged * 40 * 3 * 2


def test_a_short_stream_takes_no_more_memory_than_it_has_tokens():
    assert len(make(30, buffer=10_000)._buffer[ONE]) == 30


CASES = [
    *((n_tokens, buffer, 16, reuse) for n_tokens, buffer in SIZES for reuse in (1, 2, 3, 5)),
    *((400, 80, batch, 3) for batch in (1, 7, 100, 500)),  # 100: some cycles have no batch of their own
    (403, 81, 17, 3), (60, 80, 23, 5), (50, 80, 50, 1), (4000, 80, 16, 1),
]  # fmt: skip


@pytest.mark.parametrize("room", [False], indirect=True)
@pytest.mark.parametrize(("n_tokens", "buffer", "batch", "reuse"), CASES)
def test_overlapping_serves_the_same_batches_bit_for_bit(n_tokens, buffer, batch, reuse):
    in_turn, overlapping = (
        make(n_tokens, buffer=buffer, batch=batch, reuse=reuse, seeds=(4, 9), sites=(ONE, TWO), overlap=overlap)
        for overlap in (False, True)
    )
    assert in_turn.scale == overlapping.scale
    for site in (ONE, TWO):
        assert torch.equal(in_turn.mean[site], overlapping.mean[site])
        assert torch.equal(in_turn.sample(site, 9), overlapping.sample(site, 9))
    for one, other in zip(in_turn.batches(), overlapping.batches(), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert in_turn.n_captured == overlapping.n_captured == n_tokens
    assert in_turn.lm.n_passes == overlapping.lm.n_passes


@pytest.mark.parametrize(("batch", "reuse"), [(16, 1), (16, 3), (5, 1), (60, 2)])
def test_passes_are_spread_evenly_over_the_batches_of_a_cycle(batch, reuse, room):
    """Half a buffer of 800 is 14 passes; the first cycle has half as many batches to spread them over as the others."""
    stream = make(8000, buffer=800, batch=batch, reuse=reuse)
    seen, bursts = stream.lm.n_passes, []
    for _ in stream.batches():
        bursts.append(stream.lm.n_passes - seen)
        seen = stream.lm.n_passes
    n_batches = 400 * reuse // batch
    if room:
        assert max(bursts[: n_batches // 2]) <= 1 + 14 / (n_batches // 2 - 1)
        assert max(bursts[n_batches:]) <= 1 + 14 / (n_batches - 1)
    else:
        assert max(bursts[: n_batches // 2]) == 0
        assert max(bursts[n_batches:]) >= 13


def test_the_staged_half_is_full_when_the_last_batch_of_a_cycle_is_served(room):
    stream = make(4000, buffer=800, batch=20, reuse=2)
    filled, start, n_new = [], None, 0
    for _ in stream.batches():
        if start not in (None, stream._start):  # a new cycle: what had been staged before the last one ended?
            filled.append(n_new)
        start, n_new = stream._start, stream._n_new
    assert filled == ([400] * 9 if room else [0] * 9) + [0]


def test_whether_to_overlap_is_asked_of_the_device_with_all_that_it_must_hold(monkeypatch, room):
    asked = []
    monkeypatch.setattr("sae_bench.training.buffer.has_room", lambda device, n: asked.append((device.type, n)) or room)
    assert make(400, sites=(ONE, TWO), reserved=1000).overlap is room
    assert asked == [("cpu", 3 * 40 * (3 + 5) * 8 + 1000)]
    assert make(400, overlap=not room).overlap is not room
    assert len(asked) == 1, "asked though it was told"


def broken_at(monkeypatch, n_pass, site):
    """One number of the model's n-th pass is infinite. Returns a list of the passes that were made."""
    passes, capture = [], CountingModel.capture

    def broken(lm, tokens, sites, *, check):
        captured = capture(lm, tokens, sites, check=check)
        passes.append(lm.n_passes)
        if lm.n_passes == n_pass:
            captured[site] = captured[site].clone()
            captured[site][-1, -1, -1] = torch.inf
        return captured

    monkeypatch.setattr(CountingModel, "capture", broken)
    return passes


def test_activations_that_are_not_finite_stop_the_start_at_once(monkeypatch):
    passes = broken_at(monkeypatch, 1, TWO)
    with pytest.raises(UserError, match=r"layer_1.mlp_out: activations in torch.float64 are not all finite"):
        make(4000, buffer=800, sites=(ONE, TWO))
    assert passes == [1]


@pytest.mark.parametrize("n_pass", [2, 14])
def test_activations_of_the_first_filling_are_all_checked(monkeypatch, n_pass):
    broken_at(monkeypatch, n_pass, ONE)
    with pytest.raises(UserError, match="not all finite"):
        make(4000, buffer=800, sites=(ONE, TWO))


@pytest.mark.parametrize("n_pass", [15, 20, 27, 41, 134])
def test_no_activation_is_served_that_is_not_finite(monkeypatch, n_pass):
    broken_at(monkeypatch, n_pass, TWO)
    stream = make(4000, buffer=800, sites=(ONE, TWO))
    finite = (bool(batch[TWO, 0].isfinite().all()) for batch in stream.batches())
    with pytest.raises(UserError, match="not all finite"):
        assert all(finite)


def test_a_batch_stays_as_it_was_served():
    batches = [(batch[ONE, 0], batch[ONE, 0].clone()) for batch in make(400, reuse=3, batch=17).batches()]
    assert all(torch.equal(kept, copy) for kept, copy in batches)
    assert len({kept.untyped_storage().data_ptr() for kept, _ in batches}) == len(batches)


@pytest.mark.parametrize(("build", "family"), [(tiny_gemma2, "gemma2"), (tiny_gpt_neox, "gpt_neox")])
def test_of_a_real_model_only_counted_positions_are_served(build, family, corpus, at_work):
    """Against a whole forward pass of each context; <bos> is token 0 in one of the families."""
    lm = LanguageModel(build(), tiny_tokenizer(family), family)
    site = find_site(lm.model, "resid_post", 1)
    tokens = TokenStream(str(corpus), lm.tokenizer, split="train", context_size=16, n_tokens=300, order_seed=0)
    stream = ActivationBuffer(lm, tokens, [site], Serving(batch_size=60, buffer_tokens=128, reuse=1, seeds=[0]), QUIET)
    rows = torch.cat([batch[site, 0] for batch in stream.batches()]) * stream.scale[site]
    expected = torch.cat([lm.capture(batch.tokens, [site])[site][:, 1:].flatten(0, 1) for batch in tokens.batches(4)])
    assert rows.shape == expected.shape == (300, D_MODEL)
    order, theirs = rows[:, 0].argsort(), expected[:, 0].argsort()
    torch.testing.assert_close(rows[order], expected[theirs], rtol=1e-4, atol=1e-4)
