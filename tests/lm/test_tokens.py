"""Contexts: which documents are in them, how they are packed, and that they are the same every time."""

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from transformers import PreTrainedTokenizerFast

from sae_bench.errors import UserError
from sae_bench.evaluation.stderr import ratio_stderr
from sae_bench.lm import long_documents
from sae_bench.lm import tokens as data
from sae_bench.lm.tokens import TokenStream, special_ids, special_mask, split_of

DOCUMENTS = [
    f"the fox {number} jumps <bos> over <eos> the dog\n{f'l{number} ' * (number % 23)}" for number in range(700)
]


@pytest.fixture(autouse=True)
def _corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def documents(source: str, *, order_seed: int, column: str) -> Iterator[str]:
        order = np.random.default_rng(order_seed).permutation(len(DOCUMENTS))
        return (DOCUMENTS[index] for index in order)

    monkeypatch.setattr(data, "documents", documents)


def stream(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> TokenStream:
    options: dict[str, Any] = {"split": "train", "context_size": 17, "n_tokens": 3000, "order_seed": 7}
    return TokenStream("words", tokenizer, **options | changes)


def contexts(tokens: TokenStream, batch_contexts: int = 10, start_context: int = 0) -> torch.Tensor:
    return torch.cat([batch.tokens for batch in tokens.batches(batch_contexts, start_context)])


def whole_text(tokens: TokenStream, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(contexts(tokens)[:, 1:].flatten().tolist())


def test_a_long_held_out_document_gives_two_contexts_worth_from_a_place_that_its_content_decides(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    long = [" ".join(f"{letters[(i * k) % 26]}{k}{i}" for i in range(200)) for k in range(1, 200)]
    long = [text for text in long if split_of(text) == "eval"]
    monkeypatch.setattr(data, "documents", lambda source, *, order_seed, column: iter(long))
    held_out = stream(tokenizer, split="eval", n_tokens=32 * len(long))
    batches = list(held_out.batches(10))
    text, document = (
        torch.cat([getattr(batch, name) for batch in batches])[:, 1:].flatten() for name in ("tokens", "document")
    )
    assert document.bincount().tolist() == [32] * len(long)
    assert held_out.fewest_documents == held_out.n_documents == len(long) > 5
    wholes = [tokenizer.encode(whole + "\n\n", add_special_tokens=False) for whole in long]
    starts = []
    for i, whole in enumerate(wholes):
        window = text[document == i].tolist()
        starts.append(next(j for j in range(len(whole)) if whole[j : j + 32] == window))
    assert len(set(starts)) > len(long) / 2
    assert torch.equal(
        torch.cat([batch.tokens for batch in held_out.batches(10)]), torch.cat([b.tokens for b in batches])
    )


def test_copies_and_near_copies_of_a_held_out_document_are_one_document(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a task sums of them, four copies of every document then have the standard error of one."""
    draw = np.random.default_rng(0)
    originals = [" ".join(f"w{word}" for word in draw.integers(0, 5000, 60)) for _ in range(400)]
    originals = [text for text in originals if split_of(text) == "eval"]
    n_tokens = sum(len(tokenizer.encode(text + "\n\n", add_special_tokens=False)) for text in originals)

    def measured(texts: list[str], skip: int = 0) -> tuple[TokenStream, float]:
        """A value of every token that depends on the token alone, and the standard error of its mean."""
        monkeypatch.setattr(data, "documents", lambda source, *, order_seed, column: iter(texts))
        n_each = [min(400, len(tokenizer.encode(text + "\n\n", add_special_tokens=False))) for text in texts]
        tokens = stream(
            tokenizer, split="eval", context_size=201, n_tokens=(sum(n_each) - 2 * skip) // 200 * 200, skip_tokens=skip
        )
        found = list(tokens.batches(100))
        ids, numbers = (torch.cat([getattr(b, of) for b in found])[:, 1:].flatten() for of in ("tokens", "document"))
        assert numbers.unique().tolist() == list(range(tokens.n_documents))
        assert tokens.sizes == dict(enumerate(numbers.bincount().tolist()))
        sums = numbers.bincount(weights=(ids % 7).double()).numpy()
        error = ratio_stderr(sums, numbers.bincount().double().numpy())
        assert error is not None
        return tokens, error

    once, error = measured(originals)
    assert len(originals) > 30
    assert once.n_documents == len(originals)
    four, error_of_four = measured(4 * originals)
    assert four.n_documents == once.n_documents
    assert error_of_four == pytest.approx(error, rel=0.05)  # the last context is not full, and so left out
    with_commas, _ = measured([*originals, *(text.replace(" ", ", ") for text in originals)])
    assert with_commas.n_documents == once.n_documents, "words alone are compared"
    changed = [" ".join([*text.split()[:30], "another", *text.split()[31:]]) for text in originals]  # J = .85
    held_out = [text for text in changed if split_of(text) == "eval"]
    near, _ = measured([*originals, *held_out])
    assert once.n_documents <= near.n_documents < once.n_documents + 0.3 * len(held_out)
    later, _ = measured([*originals, *originals], skip=n_tokens // 4)
    assert later.n_documents == len(originals), "those that are passed over come again"


def test_a_watched_stream_counts_the_same_after_a_resumption(tokenizer: PreTrainedTokenizerFast) -> None:
    watch = stream(tokenizer, n_tokens=480, order_seed=8).shared_runs()
    tokens = stream(tokenizer, watch=watch)
    contexts(tokens)
    share = watch.share
    assert 0 < share < 1
    contexts(tokens, 10, start_context=150)
    assert watch.share == share
    next(tokens.batches(1))
    assert watch.share != share


def test_train_and_eval_share_no_document(tokenizer: PreTrainedTokenizerFast) -> None:
    train = whole_text(stream(tokenizer, n_tokens=36_000), tokenizer)
    held_out = whole_text(stream(tokenizer, split="eval", context_size=301, n_tokens=600, order_seed=1), tokenizer)
    numbers = {}
    for side, text in (("train", train), ("eval", held_out)):
        numbers[side] = {part.split()[0] for part in text.split("the fox ")[1:-1]}
    assert len(numbers["train"]) > 400
    assert len(numbers["eval"]) > 5
    assert not numbers["train"] & numbers["eval"]


def test_a_stream_that_skips_shares_no_document_with_the_one_before_it(tokenizer: PreTrainedTokenizerFast) -> None:
    def found(tokens: TokenStream) -> list[str]:
        return [part.split()[0] for part in whole_text(tokens, tokenizer).split("the fox ")[1:] if part]

    before, after = stream(tokenizer, n_tokens=1010), stream(tokenizer, n_tokens=1010, skip_tokens=1010)
    first, second = found(before), found(after)
    assert len(second) > 10
    assert not set(first) & set(second)
    everything = found(stream(tokenizer, n_tokens=3000))
    assert everything[: len(first)] == first
    assert len(first) <= everything.index(second[0]) <= len(first) + 2, "little is lost between the two"
    documents = torch.cat([batch.document for batch in after.batches(10)])[:, 1:].flatten()
    assert documents[0] == 0
    assert documents.unique().tolist() == list(range(after.n_documents))


def test_contexts_are_the_documents_tokens_one_after_another(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = stream(tokenizer, n_tokens=160, context_size=11)
    seed = int(np.random.SeedSequence([7, 0]).generate_state(1)[0])
    order = np.random.default_rng(seed).permutation(len(DOCUMENTS))
    texts = [text for text in (DOCUMENTS[index] for index in order) if split_of(text) == "train"][:20]
    plain = [text.replace("<bos>", "\0").replace("<eos>", "\0").split("\0") for text in texts]
    ids: list[int] = []
    for *parts, last in plain:
        for part in [*parts, last + "\n\n"]:
            ids += tokenizer.encode(part, add_special_tokens=False)
    assert contexts(tokens)[:, 1:].flatten().tolist() == ids[:160]


def test_each_context_opens_with_bos_and_holds_no_other_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    found = contexts(stream(tokenizer))
    special = special_ids(tokenizer)
    assert special == {0, 1, 2}
    assert (found[:, 0] == tokenizer.bos_token_id).all()
    assert not special_mask(found[:, 1:], special).any()


def test_tokens_flagged_as_special_are_removed_too() -> None:
    tokenizer = make_tokenizer(bos_token="<bos>", eos_token="<eos>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["fox"]})
    fox = tokenizer.convert_tokens_to_ids("fox")
    assert fox in special_ids(tokenizer)
    assert fox not in contexts(stream(tokenizer))


def test_special_mask_knows_that_zero_is_an_id() -> None:
    tokens = torch.tensor([[0, 5, 7], [7, 0, 1]])
    assert special_mask(tokens, frozenset({0, 7})).tolist() == [[True, False, True], [True, True, False]]
    assert not special_mask(tokens, frozenset()).any()


@pytest.mark.parametrize(("n_tokens", "n_contexts"), [(0, 0), (1, 1), (16, 1), (17, 2), (3000, 188)])
def test_whole_contexts_cover_the_tokens_asked_for(
    tokenizer: PreTrainedTokenizerFast, n_tokens: int, n_contexts: int
) -> None:
    tokens = stream(tokenizer, n_tokens=n_tokens)
    assert tokens.n_contexts == n_contexts
    assert sum(len(batch.tokens) for batch in tokens.batches(10)) == n_contexts
    assert tokens.n_delivered == 16 * n_contexts


def test_document_numbers_follow_the_documents(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = stream(tokenizer)
    batches = list(tokens.batches(10))
    found = torch.cat([batch.document for batch in batches])
    text = found[:, 1:].flatten()
    assert (found[:, 0] == -1).all()
    assert text[0] == 0
    assert set(text.diff().tolist()) == {0, 1}
    assert tokens.n_documents == text[-1] + 1
    first = torch.cat([batch.tokens for batch in batches])[:, 1:].flatten()[text == 0]
    assert tokenizer.decode(first.tolist()).endswith("\n\n")
    assert tokenizer.decode(first.tolist()).count("fox") == 1


def test_the_batch_size_changes_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = stream(tokenizer)
    all_at_once = contexts(expected, 1000)
    for size in (1, 7, 188):
        tokens = stream(tokenizer)
        assert torch.equal(contexts(tokens, size), all_at_once)
        assert tokens.fingerprint == expected.fingerprint
    assert [len(batch.tokens) for batch in stream(tokenizer).batches(100)] == [100, 88]


def test_the_fingerprint_is_the_hash_of_what_was_delivered(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = stream(tokenizer)
    assert tokens.fingerprint == hashlib.sha256().hexdigest()
    delivered = b""
    for batch in tokens.batches(10):
        delivered += batch.tokens.numpy().astype("<i8").tobytes()
        assert tokens.fingerprint == hashlib.sha256(delivered).hexdigest()
    other = stream(tokenizer, order_seed=8)
    contexts(other)
    assert other.fingerprint != tokens.fingerprint


def test_iterating_again_starts_afresh(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = stream(tokenizer)
    interrupted = tokens.batches(10)
    next(interrupted)
    first = contexts(tokens)
    state = (tokens.fingerprint, tokens.n_delivered, tokens.n_documents, tokens.passes)
    assert torch.equal(contexts(tokens), first)
    assert (tokens.fingerprint, tokens.n_delivered, tokens.n_documents, tokens.passes) == state


def test_a_resumed_stream_goes_on_where_it_stopped(tokenizer: PreTrainedTokenizerFast) -> None:
    whole, resumed = stream(tokenizer), stream(tokenizer)
    expected = contexts(whole)
    assert torch.equal(contexts(resumed, 10, start_context=33), expected[33:])
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.n_delivered == whole.n_delivered
    assert not list(resumed.batches(10, start_context=188))


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_document_of_any_length_is_tokenised_in_parts_and_nobody_notices(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    """Documents that are no longer than a part are never taken apart; batches are bound by characters, too."""
    whole, sizes = stream(tokenizer, split=split, n_tokens=800), []
    before = contexts(whole)
    monkeypatch.setattr(long_documents, "LONG", 60)
    encode = long_documents._encoded
    monkeypatch.setattr(
        long_documents, "_encoded", lambda of, texts: (sizes.append([*map(len, texts)]), encode(of, texts))[1]
    )
    again = stream(tokenizer, split=split, n_tokens=800)
    assert torch.equal(contexts(again), before)
    assert (again.n_documents, again.fingerprint, again.sizes) == (whole.n_documents, whole.fingerprint, whole.sizes)
    assert max(map(sum, sizes)) <= 60 + len(data.SEPARATOR)
    assert max(map(len, sizes)) == 1 < len(sizes)


def test_training_reads_a_short_corpus_again_in_another_order(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = stream(tokenizer, n_tokens=100_000)
    with caplog.at_level(logging.WARNING, logger=data.__name__):
        text = whole_text(tokens, tokenizer)
        whole_text(tokens, tokenizer)
    assert tokens.passes >= 3
    (warning,) = caplog.messages
    n_unique = int(warning.split("holds ")[1].split()[0])
    assert 100_000 / tokens.passes < n_unique < 100_000 / (tokens.passes - 1)
    numbers = [part.split()[0] for part in text.split("the fox ")[1:]]
    n_train = sum(split_of(document) == "train" for document in DOCUMENTS)
    first, second = numbers[:n_train], numbers[n_train : 2 * n_train]
    assert first != second
    assert sorted(first) == sorted(second)


def test_evaluation_never_repeats_a_text(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"holds \d+ evaluation tokens.* use --eval-tokens \d+ or less") as caught:
        contexts(stream(tokenizer, split="eval", n_tokens=100_000))
    most = int(str(caught.value).split("--eval-tokens ")[1].split()[0])
    assert most % 16 == 0
    assert len(contexts(stream(tokenizer, split="eval", n_tokens=most))) == most // 16
    with pytest.raises(UserError):
        contexts(stream(tokenizer, split="eval", n_tokens=most + 1))


def test_a_corpus_of_one_long_document_is_told_that_documents_are_held_out(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = next(str(n) for n in range(100) if split_of(str(n)) == "train")
    monkeypatch.setattr(data, "documents", lambda source, *, order_seed, column: iter([one]))
    with pytest.raises(UserError, match=r"0 evaluation tokens.*it has 1 documents, and of documents one in ten"):
        contexts(stream(tokenizer, split="eval"))


def test_a_corpus_without_training_text_is_refused(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "documents", lambda source, *, order_seed, column: iter(()))
    with pytest.raises(UserError, match='"words" has no text to train on'):
        contexts(stream(tokenizer))


@pytest.mark.parametrize(
    ("size", "message"), [(1, "size 1 leaves no room.* at least 2"), (65, "size 65 exceeds.* at most 64")]
)
def test_impossible_context_sizes_are_refused(tokenizer: PreTrainedTokenizerFast, size: int, message: str) -> None:
    assert stream(tokenizer, context_size=64, max_context=64).context_size == 64
    with pytest.raises(UserError, match=message):
        stream(tokenizer, context_size=size, max_context=64)


def test_eos_opens_contexts_where_there_is_no_bos() -> None:
    assert (contexts(stream(make_tokenizer(pad_token="<pad>", eos_token="<end>")))[:, 0] == 1).all()
    with pytest.raises(UserError, match="has no BOS and no EOS"):
        stream(make_tokenizer(pad_token="<pad>"))
