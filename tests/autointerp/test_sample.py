"""Collecting on a toy model with known features: each latent fires on one token, so every excerpt can be checked."""

import pytest
import torch
from command import write_corpus
from conftest import make_tokenizer
from tiny import tiny_llama, tiny_tokenizer

from sae_bench import SAEConfig, SparseAutoencoder
from sae_bench.autointerp.examples import MIN_FIRED, N_SILENT, Pieces
from sae_bench.autointerp.latents import logit_weights
from sae_bench.autointerp.reservoir import Reservoir, random_keys
from sae_bench.autointerp.sample import Subject, collect, collection_bytes
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import find_site
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress

QUIET = Progress(quiet=True)
N_TOKENS = 3000


class OneWord(SparseAutoencoder):
    """Latent i is 1 + i / 1000 on token i and 0 elsewhere: the site is the embedding, which tells tokens apart."""

    def __init__(self, embedding):
        super().__init__(SAEConfig(d_in=embedding.shape[1], d_sae=len(embedding), l0=1))
        self.embedding, self.folded = embedding, True
        self.fires = torch.ones(len(embedding))

    def encode(self, x):
        token = torch.cdist(x, self.embedding).argmin(1)
        f = torch.zeros(len(x), len(self.embedding))
        strength = (1 + torch.arange(len(self.embedding)) / 1000) * self.fires
        return f.scatter(1, token[:, None], strength[token][:, None])

    def loss(self, x, step):
        raise NotImplementedError


@pytest.fixture(scope="module")
def lm():
    return LanguageModel(tiny_llama(), tiny_tokenizer("llama"), "tiny")


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory, at_work):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", 2400)


def stream_of(lm, path, n_tokens=N_TOKENS, skip=0):
    return TokenStream(
        str(path), lm.tokenizer, split="eval", context_size=33, n_tokens=n_tokens, order_seed=0, skip_tokens=skip
    )


@pytest.fixture(scope="module")
def subject(lm):
    site = find_site(lm.model, "path:model.embed_tokens", 0)
    return Subject("one-word", OneWord(lm.model.get_input_embeddings().weight.detach().clone()), site)


@pytest.fixture(scope="module")
def collection(lm, corpus_path, subject):
    (collection,) = collect(lm, stream_of(lm, corpus_path), [subject], 20, QUIET, hard=True)
    return collection


def word_of(lm, latent):
    return " " + lm.tokenizer.convert_ids_to_tokens(latent)


def counts_of(lm, path):
    tokens = torch.cat([batch.tokens[:, 1:].flatten() for batch in stream_of(lm, path).batches(8)])
    return torch.bincount(tokens, minlength=len(lm.tokenizer))


def test_every_activation_is_where_the_word_is_and_nowhere_else(lm, collection):
    assert len(collection.found) == 20
    for found in collection.found:
        word, strength = word_of(lm, found.latent), pytest.approx(1 + found.latent / 1000)
        for example in found.examples:
            assert [token for token, value in zip(example.tokens, example.activations, strict=True) if value > 0] == [
                token for token in example.tokens if token == word
            ]
            assert all(value in (0, strength) for value in example.activations)
            assert (word in example.tokens) == (example.kind in ("top", "decile"))
        assert found.maximum == strength


def test_counts_and_histogram_are_those_of_the_text(lm, collection, corpus_path):
    counts = counts_of(lm, corpus_path)
    for found in collection.found:
        assert found.n_fired == sum(found.counts) == int(counts[found.latent])
        assert found.counts[-1] == found.n_fired, "all its activations are its maximum"
        assert found.edges[-1] == found.maximum
    assert collection.stream.n_delivered == 3008


def test_only_latents_that_fire_often_enough_are_sampled_and_by_chance(lm, collection, corpus_path, subject):
    counts = counts_of(lm, corpus_path)
    assert collection.n_eligible == int((counts >= MIN_FIRED).sum())
    assert all(counts[found.latent] >= MIN_FIRED for found in collection.found)
    other_name = Subject("another", subject.sae, subject.site)
    (other,) = collect(lm, stream_of(lm, corpus_path), [other_name], 20, QUIET)
    assert {f.latent for f in other.found} != {f.latent for f in collection.found}
    (everything,) = collect(lm, stream_of(lm, corpus_path), [subject], 10_000, QUIET)
    assert len(everything.found) == collection.n_eligible


def test_what_explains_does_not_score(collection):
    for found in collection.found:
        by_use = [{e.tokens for e in found.examples if e.use == use} for use in ("explain", "score")]
        assert not by_use[0] & by_use[1]
        assert by_use[0]
        kinds = {e.kind for e in found.examples if e.use == "explain"}
        assert kinds <= {"top", "decile"}
        assert sum(e.kind in ("silent", "hard") for e in found.examples) <= N_SILENT


def test_hard_negatives_are_silent_and_a_neighbour_fires_there(lm, collection, subject):
    rows = torch.nn.functional.normalize(subject.sae.W_dec.detach(), dim=1)
    hard = 0
    for found in collection.found:
        similar = rows @ rows[found.latent]
        for example in (e for e in found.examples if e.kind == "hard"):
            hard += 1
            ids = lm.tokenizer.convert_tokens_to_ids([token.strip() for token in example.tokens])
            assert found.latent not in ids
            rank = (similar > max(similar[i] for i in ids)).sum()
            assert rank < 40  # one of the most similar among those that fire at all
    assert hard > 20


def test_the_beginning_of_a_text_is_no_example(lm, collection):
    assert all("<bos>" not in e.tokens for found in collection.found for e in found.examples)
    assert all(len(e.tokens) == 32 for found in collection.found for e in found.examples)


def test_batches_do_not_change_what_is_collected(lm, corpus_path, subject, collection, monkeypatch):
    monkeypatch.setattr("sae_bench.autointerp.sample.MAX_CONTEXTS", 3)
    (again,) = collect(lm, stream_of(lm, corpus_path), [subject], 20, QUIET, hard=True)
    assert [f.examples for f in again.found] == [f.examples for f in collection.found]


def test_a_dead_sae_gives_an_empty_collection(lm, corpus_path, subject):
    dead = OneWord(subject.sae.embedding)
    dead.fires = torch.zeros(len(dead.fires))
    (collection,) = collect(lm, stream_of(lm, corpus_path), [Subject("dead", dead, subject.site)], 5, QUIET)
    assert (collection.found, collection.n_eligible) == ([], 0)


def test_top_examples_are_the_strongest(lm, corpus_path, subject):
    """An SAE whose one latent grows with the token's number: the top must hold the highest numbers there are."""

    class Ramp(OneWord):
        def encode(self, x):
            f = torch.zeros(len(x), len(self.embedding))
            f[:, 7] = torch.cdist(x, self.embedding).argmin(1).float()
            return f

    (collection,) = collect(
        lm, stream_of(lm, corpus_path), [Subject("ramp", Ramp(subject.sae.embedding), subject.site)], 5, QUIET
    )
    (found,) = collection.found
    tokens = torch.cat([batch.tokens[:, 1:] for batch in stream_of(lm, corpus_path).batches(8)])
    peaks = tokens.amax(1).sort(descending=True).values
    tops = [e.peak for e in found.examples if e.kind == "top"]
    assert min(tops) >= peaks[len(peaks) // 2]
    assert max(e.peak for e in found.examples) == peaks[0]
    deciles = {e.decile: e.peak for e in found.examples if e.kind == "decile" and e.use == "score"}
    assert [deciles[d] for d in sorted(deciles)] == sorted(deciles.values())
    assert set(deciles) == set(range(1, 11))


def test_interpretation_comes_after_evaluation_on_other_documents(lm, corpus_path):
    def texts(n, skip):
        return [row[1:] for batch in stream_of(lm, corpus_path, n, skip).batches(4) for row in batch.tokens.tolist()]

    first, second, third = texts(300, 50), texts(300, (50, 300)), texts(300, (50, 300, 300))
    flat = [[token for row in part for token in row] for part in (first, second, third)]
    assert not {tuple(row) for row in first} & {tuple(row) for row in second}
    everything = [token for row in texts(3000, 0) for token in row]
    places = [next(i for i in range(len(everything)) if everything[i : i + 20] == part[:20]) for part in flat]
    assert places[0] + len(flat[0]) <= places[1]
    assert places[1] + len(flat[1]) <= places[2]


def test_words_raised_by_a_latent_are_those_its_row_points_to(lm, subject):
    site = find_site(lm.model, "resid_post", 1)
    sae = OneWord(subject.sae.embedding)
    head = lm.model.get_output_embeddings().weight
    with torch.no_grad():
        sae.W_dec[3] = 2 * head[11] / head[11].norm() ** 2
    (words,) = logit_weights(lm, Subject("x", sae, site), [3])
    exact = (head @ sae.W_dec[3]).detach()
    assert words["top"][0] == [word_of(lm, int(exact.argmax())), pytest.approx(float(exact.max()))]
    assert words["bottom"][0][1] == pytest.approx(float(exact.min()))
    assert logit_weights(lm, Subject("x", sae, find_site(lm.model, "attn_out", 1)), [3]) == [None]


@pytest.mark.parametrize(
    "text", ["plain words", "naïve café", "日本語のテキスト", "a \U0001f600 b", "tab\tand\nline", "é"]
)
def test_the_pieces_of_an_excerpt_joined_are_its_text(text):
    """A byte-level tokenizer splits characters; the pieces put them together again, each in one place."""
    tokenizer = make_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer).split(ids)
    assert "".join(pieces) == text
    assert len(pieces) == len(ids)


def test_a_character_cut_off_at_the_edge_shows_as_such():
    tokenizer = make_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    ids = tokenizer("日", add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer).split([*ids[1:], *tokenizer("ab", add_special_tokens=False)["input_ids"]])
    assert "".join(pieces).endswith("ab")
    assert "\ufffd" in pieces[0]


def test_memory_is_stated_and_does_not_grow_with_the_text_but_for_the_text():
    """1,000 latents of 16 SAEs of width 16k from 2M tokens: under a gigabyte."""
    whole = collection_bytes(1000, [16_384] * 16, 2_000_000, 128)
    assert whole < 1 << 30
    assert whole - collection_bytes(1000, [16_384] * 16, 1_000_000, 128) == 16 * 1_000_000


def test_a_reservoir_holds_what_was_stated_however_much_it_has_seen():
    reservoir = Reservoir(50, 6, 32, torch.device("cpu"))
    for first in range(0, 300, 30):
        number = torch.arange(first, first + 30)
        reservoir.add(random_keys(torch.arange(50), number, 1), number, torch.rand(50, 30, 32))
        held = (reservoir.keys, reservoir.excerpt, reservoir.activations)
        assert sum(part.untyped_storage().nbytes() for part in held) == 50 * Reservoir.n_bytes(6, 32)


def test_random_keys_are_a_fair_draw():
    keys = random_keys(torch.arange(200), torch.arange(300), 1)
    assert keys.mean() == pytest.approx(0.5, abs=0.01)
    assert keys.std() == pytest.approx(12**-0.5, abs=0.01)
    assert (keys.sort(dim=1).indices[:, 0].bincount(minlength=300) <= 6).all()
    assert not torch.equal(keys, random_keys(torch.arange(200), torch.arange(300), 2))
