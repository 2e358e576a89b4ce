"""The split: near-duplicates stand together, repeated text is held out from nobody, and only content decides."""

import random
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.lm import near_duplicates
from sae_bench.lm.near_duplicates import digest, repeated_texts, split_of
from sae_bench.lm.shared_runs import RUN_LENGTH, SharedRuns

WORDS = [f"word{number}" for number in range(5000)]


def text_of(seed: int, n_words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


HELD_OUT = next(text for text in map(text_of, range(1000)) if split_of(text) == "eval")
TRAINED_ON = [text for text in map(text_of, range(1000, 1200)) if split_of(text) == "train"]


def test_one_unrelated_document_in_ten_is_held_out() -> None:
    sides = [split_of(text_of(seed, 40)) for seed in range(5000)]
    assert abs(sides.count("eval") - 500) < 4 * np.sqrt(5000 * 0.1 * 0.9)


def test_documents_with_one_word_in_200_changed_nearly_always_stand_together() -> None:
    # 191 of 201 shingles in common, J = .950: of both sides' pairs at most 2 x .1 x .9 x .05 = .9% are parted.
    n_parted = n_held_out = 0
    for seed in range(2000):
        words = text_of(seed).split()
        words[100] = "another"
        one, other = split_of(text_of(seed)), split_of(" ".join(words))
        n_parted += one != other
        n_held_out += one == "eval"
    assert n_held_out > 150
    assert n_parted < 18 + 4 * np.sqrt(18), "a side by the hash of the whole text parts 360"


@given(st.text(max_size=300))
def test_every_text_has_a_side_whatever_its_case_and_spaces(text: str) -> None:
    assert split_of(text) in ("train", "eval")
    assert split_of(text) == split_of(text)
    plain = text_of(len(text), 20)
    assert split_of(plain.upper().replace(" ", "\n ")) == split_of(plain)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_what_is_repeated_depends_on_no_order_and_no_repetition(draw: random.Random, n_times: int) -> None:
    shared = " ".join(HELD_OUT.split()[:40])
    texts = [HELD_OUT, TRAINED_ON[0] + " " + shared, *TRAINED_ON[1:10]] * n_times
    draw.shuffle(texts)
    expected = {digest(HELD_OUT)} if split_of(TRAINED_ON[0] + " " + shared) == "train" else set()
    assert repeated_texts(lambda: texts) == expected


def test_a_held_out_document_goes_when_more_than_a_twentieth_is_trained_on() -> None:
    # Of 193 shingles of 8 words: 10 words hold 3 of them (1.6%), 20 hold 13 (6.7%).
    words = HELD_OUT.split()
    for n_words, gone in ((10, set()), (20, {digest(HELD_OUT)})):
        partner = next(
            other for text in TRAINED_ON if split_of(other := f"{text} {' '.join(words[:n_words])}") == "train"
        )
        assert repeated_texts(lambda other=partner: [HELD_OUT, other]) == gone
    assert repeated_texts(lambda: []) == frozenset()


def as_text(*documents: list[int]) -> np.ndarray:
    ids = [token for document in documents for token in document]
    ordinals = [i for i, document in enumerate(documents) for _ in document]
    return np.array([ids, ordinals])


def test_shared_tokens_are_those_in_common_runs_of_13() -> None:
    run = list(range(100, 113))
    held_out = as_text([1, 2, *run, 3], [7] * 4)
    counted = SharedRuns([held_out])
    counted.see(as_text([5, *run[:12], 6]))
    assert counted.share == 0, "12 in a row are no run of 13"
    counted.see(as_text(run[:6], run[6:]))
    assert counted.share == 0, "a run that goes from one document into the next is none"
    counted.see(as_text([9, *run]))
    assert counted.share == 13 / 20
    counted.restart()
    assert counted.share == 0


def naive_share(held_out: np.ndarray, training: np.ndarray) -> float:
    def runs(text: np.ndarray) -> list[tuple[int, tuple[int, ...]]]:
        starts = range(text.shape[1] - RUN_LENGTH + 1)
        whole = [i for i in starts if text[1, i] == text[1, i + RUN_LENGTH - 1]]
        return [(i, tuple(text[0, i : i + RUN_LENGTH].tolist())) for i in whole]

    known = {run for _, run in runs(training)}
    shared = {i + k for i, run in runs(held_out) if run in known for k in range(RUN_LENGTH)}
    return len(shared) / held_out.shape[1]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 400), max_size=5))
def test_the_share_is_the_naive_one_however_the_training_text_is_cut(seed: int, cuts: list[int]) -> None:
    draw = np.random.default_rng(seed)
    source = draw.integers(0, 3, 300)
    held_out = np.stack([np.concatenate([source[50:90], draw.integers(0, 3, 160)]), np.arange(200) // 70])
    training = np.stack([np.concatenate([source, source[:100]]), np.arange(400) // 130])
    counted = SharedRuns([held_out[:, :77], held_out[:, 77:]])
    for start, end in pairwise([0, *sorted(set(cuts) - {400}), 400]):
        counted.see(training[:, start:end])
    assert counted.share == naive_share(held_out, training)
    assert counted.share > 0


def test_a_text_of_any_length_has_the_same_hashes_as_all_at_once(monkeypatch) -> None:
    """In pieces of seven shingles; its digest is another one then, and any changed word changes it."""
    words = near_duplicates._words(text_of(3, 500))
    for length in (1, 5, 8, 500):
        (whole,) = near_duplicates._shingles(words, length)
        with monkeypatch.context() as patch:
            patch.setattr(near_duplicates, "AT_ONCE", 7)
            pieces = [*near_duplicates._shingles(words, length)]
        assert max(map(len, pieces)) <= 7
        assert np.array_equal(np.concatenate(pieces), whole)
    (chain,) = near_duplicates._shingles(words, len(words))
    assert digest(text_of(3, 500)) == int(chain[0])
    monkeypatch.setattr(near_duplicates, "AT_ONCE", 7)
    monkeypatch.setattr(near_duplicates, "ABREAST", 6)
    texts = [text_of(3, 500), *(text_of(3, 500) + more for more in (" a", " b", " a a")), text_of(4, 500)]
    texts += [texts[0].replace(texts[0].split()[i], "another", 1) for i in (0, 1, 250, 498, 499)]
    assert len({*map(digest, texts)}) == len(texts)
