"""Absorption on SAEs that are known to absorb, or not to; the words that are asked for, and where they are read."""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from letters import letter_tokenizer, made_up
from torch import Tensor

from sae_bench import ARCHITECTURES, TASKS, LetterProbes, LetterWords, Result, SAEConfig, SparseAutoencoder
from sae_bench.errors import UserError
from sae_bench.probing.first_letters import EXAMPLES, FirstLetters, contexts_of, lines_of
from sae_bench.saes.active import latent_major
from sae_bench.testing import check_task

N_LETTERS, N_TRAINED, N_TESTED = 4, 40, 8
PARENT, CHILD = 10.0, 5.0
"""What every word has of its letter's direction, and of its own."""


def module() -> ModuleType:
    return sys.modules[TASKS["absorption"].__module__]


def sae_of(columns: Tensor, b_enc: Tensor, rows: Tensor) -> SparseAutoencoder:
    """A relu SAE with these encoder columns [F, D], biases and decoder rows [F, D]; b_dec is zero."""
    sae = ARCHITECTURES["relu"](SAEConfig(d_in=rows.shape[1], d_sae=len(rows), coefficient=1.0)).requires_grad_(False)
    sae.W_enc.data = latent_major(columns.T)
    sae.b_enc.copy_(b_enc)
    sae.W_dec.copy_(rows)
    return sae


class World:
    """Four letters, and of each 40 training and 8 test words; every word is its letter's direction and its own."""

    def __init__(self) -> None:
        per_letter = N_TRAINED + N_TESTED
        self.n = N_LETTERS * per_letter
        self.letter = np.arange(self.n) // per_letter
        self.trained = np.arange(self.n) % per_letter < N_TRAINED
        self.eye = torch.eye(N_LETTERS + self.n)
        self.x = PARENT * self.eye[torch.tensor(self.letter)] + CHILD * self.eye[N_LETTERS:]
        words = [f"{'abcd'[letter]}{i}" for i, letter in enumerate(self.letter)]
        self.words = LetterWords([], [], words=words, letter=self.letter, trained=self.trained)

    def tested(self, letter: int, i: int) -> int:
        """The number of a letter's i-th test word."""
        return int(np.flatnonzero((self.letter == letter) & ~self.trained)[i])

    def sae(self, absorbing: dict[int, float]) -> SparseAutoencoder:
        """A latent for each letter and, of some words, one that carries a share of the letter in its place, too."""
        columns, rows, bias = list(self.eye[:N_LETTERS]), list(self.eye[:N_LETTERS]), [0.0] * N_LETTERS
        for word, share in absorbing.items():
            letter, own = self.letter[word], self.eye[N_LETTERS + word]
            columns[letter] = columns[letter] - PARENT * share / CHILD * own  # on this word (1 - share) PARENT is left
            carried = PARENT * share * self.eye[letter] + CHILD * own
            columns.append(own / CHILD * carried.norm())
            rows.append(carried / carried.norm())
            bias.append(0.0)
        return sae_of(torch.stack(columns), torch.tensor(bias), torch.stack(rows))

    def probes(self) -> LetterProbes:
        return LetterProbes.fit(self.x.double().numpy(), self.letter, self.trained)

    def true_probes(self) -> LetterProbes:
        """Probes that point where the letters do, and miss no word."""
        found = np.zeros((26, self.n), dtype=bool)
        direction, f1 = np.zeros((26, self.x.shape[1])), np.zeros(26)
        for i in range(N_LETTERS):
            found[i], f1[i], direction[i, i] = (self.letter == i) & ~self.trained, 1.0, 1.0
        return LetterProbes(1.0, direction, f1, found)

    def run(self, sae: SparseAutoencoder, probes: LetterProbes | None = None) -> Result:
        task = TASKS["absorption"](None)  # type: ignore[call-arg]
        task.update(self.words, self.x, sae, probes or self.probes())  # type: ignore[attr-defined]
        return task.finish().checked()


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def values(result: Result) -> dict[str, float | None]:
    return {name: score.value for name, score in result.scores.items()}


def test_an_sae_that_absorbs_one_word_of_each_letter_is_found_doing_so(world):
    """1 of 8 test words of each of 4 letters, whose letter is carried whole by the word's latent: 1/8."""
    sae = world.sae({world.tested(letter, 2): 1.0 for letter in range(N_LETTERS)})
    for probes in (world.true_probes(), None):  # None: fitted, as in a run
        result = world.run(sae, probes)
        found = values(result)
        assert found["mean_absorption_fraction"] == found["absorption_fraction_centred"] == 1 / N_TESTED
        assert found["mean_full_absorption"] == found["full_absorption_centred"] == 1 / N_TESTED
        assert (found["num_split_latents"], found["letters_scored"]) == (1, N_LETTERS)
        assert result.scores["mean_full_absorption"].stderr == 0  # the letters are alike
        assert result.scores["mean_full_absorption"].n == N_LETTERS * N_TESTED
        assert result.details["letters"]["c"]["split_latents"] == [2]
        # Each letter's latent misses one of 8 test words: recall 7/8, precision 1.
        assert found["split_latents_f1"] == pytest.approx(2 * (7 / 8) / (1 + 7 / 8))


def test_an_sae_that_does_not_absorb_is_found_not_to(world):
    found = values(world.run(world.sae({})))
    absorbed = ("mean_absorption_fraction", "mean_full_absorption", "absorption_fraction_centred")
    assert [found[name] for name in absorbed] == [0, 0, 0]
    assert found["split_latents_f1"] == found["probe_f1"] == 1


def test_what_is_absorbed_in_part_counts_in_part_and_not_as_full(world):
    """Letter a: one word's latent carries .6 of it, its own .4: .6 on 1 of 8 words. Letter b: .3 is too little."""
    sae = world.sae({world.tested(0, 0): 0.6, world.tested(1, 3): 0.3})
    result = world.run(sae, world.true_probes())
    assert result.details["letters"]["a"]["mean_absorption_fraction"] == pytest.approx(0.6 / 8)
    assert result.details["letters"]["b"]["mean_absorption_fraction"] == 0
    assert values(result)["mean_absorption_fraction"] == pytest.approx(0.6 / 8 / N_LETTERS)
    assert values(result)["mean_full_absorption"] == 0
    of_letters = np.array([0.6 / 8, 0, 0, 0])
    stderr = result.scores["mean_absorption_fraction"].stderr
    assert stderr == pytest.approx(of_letters.std(ddof=1) / 2)  # clustered by letter: root of 4
    assert result.by_document["mean_absorption_fraction"] == pytest.approx(of_letters)  # so SAEs are paired by letter
    assert result.by_document["letters"] == [1, 1, 1, 1]
    assert result.scores["mean_absorption_fraction"].formula == "mean_absorption_fraction / letters"


def test_a_hierarchy_whose_child_is_common_is_split_and_not_absorbed(world):
    """The letter and one child that a quarter of its words have: the child's latent takes the letter's place on them.

    It is then a latent of the letter: alone the first one has recall 3/4, both have 1, and nothing is absorbed.
    """
    child = torch.tensor((world.letter == 0) & (np.arange(world.n) % 4 == 0)).float()
    axis = torch.nn.functional.one_hot(torch.tensor(world.x.shape[1]), world.x.shape[1] + 1).float()
    x = torch.nn.functional.pad(world.x, (0, 1)) + CHILD * child[:, None] * axis
    parent = torch.nn.functional.pad(world.eye[0], (0, 1))
    carried = PARENT * parent + CHILD * axis
    rows = torch.stack([parent, carried / carried.norm()])
    columns = torch.stack([parent - PARENT / CHILD * axis, axis / CHILD * carried.norm()])
    twisted = World()
    twisted.x = x
    result = twisted.run(sae_of(columns, torch.zeros(2), rows))
    assert sorted(result.details["letters"]["a"]["split_latents"]) == [0, 1]
    assert result.details["letters"]["a"]["split_latents_f1"] == 1
    assert result.details["letters"]["a"]["mean_absorption_fraction"] == 0
    assert result.details["letters"]["a"]["mean_full_absorption"] == 0


def test_order_and_size_of_latents_change_nothing(world):
    draw = torch.Generator().manual_seed(3)
    noisy = World()
    noisy.x = world.x + torch.randn(world.x.shape, generator=draw) + 2
    columns = torch.cat([noisy.sae({}).W_enc.T, torch.randn(60, noisy.x.shape[1], generator=draw) / 4])
    columns = columns + 0.1 * torch.randn(columns.shape, generator=draw)
    bias = -torch.rand(len(columns), generator=draw)
    rows = torch.nn.functional.normalize(columns + 0.05 * torch.randn(columns.shape, generator=draw), dim=1)
    plain = noisy.run(sae_of(columns, bias, rows))
    order = torch.randperm(len(columns), generator=draw)
    permuted = noisy.run(sae_of(columns[order], bias[order], rows[order]))
    size = 0.5 + torch.rand(len(columns), 1, generator=draw)
    scaled = noisy.run(sae_of(columns * size, bias * size[:, 0], rows / size))
    assert values(plain)["mean_absorption_fraction"] > 0
    for other in (permuted, scaled):
        for name, value in values(plain).items():
            assert values(other)[name] == pytest.approx(value, rel=1e-6), name
    for letter, row in plain.details["letters"].items():
        split = permuted.details["letters"][letter]["split_latents"]
        assert [int(order[i]) for i in split] == row["split_latents"]


# activations of the letter's latent and of four others; their cosines; the projection; fraction, full
CASES = {
    "silent, and one carries it": ([0, 5, 0, 0, 0], [1, 0.8, 0, 0, 0], 5, 1, True),
    "silent, and it carries too little": ([0, 5, 0, 0, 0], [1, 0.39, 0, 0, 0], 5, 0, False),
    "just enough": ([0, 5, 0, 0, 0], [1, 0.5, 0, 0, 0], 6.25, 1, True),
    "a cosine that is enough for one, and not for the fraction": ([0, 50, 0, 0, 0], [1, 0.05, 0, 0, 0], 5, 0, True),
    "a cosine that is too small for both": ([0, 200, 0, 0, 0], [1, 0.02, 0, 0, 0], 5, 0, False),
    "two carry it, none alone": ([0, 5, 5, 0, 0], [1, 0.3, 0.3, 0, 0], 5, 1, False),
    "three of four count": ([0, 1, 1, 1, 1], [1, 0.5, 0.5, 0.5, 0.5], 4, 0, False),
    "three of four are enough": ([0, 1, 1, 1, 1], [1, 0.5, 0.5, 0.5, 0.5], 3.75, 1, False),
    "it fires and carries all": ([5, 5, 0, 0, 0], [1, 0.8, 0, 0, 0], 5, 0, False),
    "it fires and carries a quarter": ([1, 5, 0, 0, 0], [1, 0.6, 0, 0, 0], 4, 0.75, False),
    "more than what is left does not count": ([2, 50, 0, 0, 0], [1, 0.6, 0, 0, 0], 5, 3 / 5, False),
    "less than what is left": ([2, 5, 0, 0, 0], [1, 0.5, 0, 0, 0], 6, 2.5 / 4.5, False),
    "it points away, and others carry it": ([2, 5, 0, 0, 0], [-0.5, 0.9, 0, 0, 0], 5, 1, False),
    "x points away": ([0, 5, 0, 0, 0], [1, 0.8, 0, 0, 0], -5, 0, False),
    "nothing fires": ([0, 0, 0, 0, 0], [1, 0.8, 0, 0, 0], 5, 0, False),
}


@pytest.mark.parametrize(("f", "cosine", "projection", "fraction", "full"), CASES.values(), ids=list(CASES))
def test_a_word_by_hand(f, cosine, projection, fraction, full):
    # Beside another word, on which the letter's latent does all.
    both = np.array([f, [3, 0, 0, 0, 0]], dtype=float)
    found = module().absorption(both, np.array(cosine, dtype=float), np.array([projection, 3.0 * cosine[0]]), [0])
    assert found[0].tolist() == [pytest.approx(fraction), 0]
    assert found[1].tolist() == [full, False]


def test_a_latent_and_its_negative_are_one():
    f, cosine = np.array([[0, 5.0, 0], [0, 1, 6]]), np.array([1, 0.8, 0.7])
    plain = module().absorption(f, cosine, np.array([5, 5.0]), [0])
    turned = module().absorption(f * [1, -1, 1], cosine * [1, -1, 1], np.array([5, 5.0]), [0])
    assert plain[0].tolist() == turned[0].tolist() == [1, 1]
    assert plain[1].tolist() == turned[1].tolist() == [True, True]


def test_latents_are_a_letters_while_f1_rises_by_more_than_three_hundredths():
    rising = module().rising
    assert rising([0.5, 0.54, 0.56, 0.9]) == (2, 0.54)
    assert rising([0.25, 0.375, 0.5]) == (3, 0.5)
    assert rising([0.0]) == (1, 0.0)
    assert rising([]) == (0, 0.0)


def test_a_letter_that_the_probe_on_x_does_not_know_is_not_scored_and_counted(world):
    probes = world.true_probes()
    probes.f1[:2] = 0.6, 0.61
    result = world.run(world.sae({}), probes)
    assert set(result.details["letters"]) == {"b", "c", "d"}
    assert values(result)["letters_scored"] == 3
    assert values(result)["probe_f1"] == pytest.approx((0.6 + 0.61 + 1 + 1) / 4)
    assert result.scores["mean_full_absorption"].note == "probes on x find 3 letters; SAEBench wants 20"
    probes.f1[:] = 0.1
    result = world.run(world.sae({}), probes)
    assert (values(result)["letters_scored"], values(result)["mean_full_absorption"]) == (0, None)


def test_an_sae_of_dead_latents_has_none_for_a_letter(world):
    sae = sae_of(torch.zeros(3, world.x.shape[1]), -torch.ones(3), torch.eye(3, world.x.shape[1]))
    found = values(world.run(sae, world.true_probes()))
    assert (found["num_split_latents"], found["split_latents_f1"], found["mean_absorption_fraction"]) == (0, 0, 0)


@pytest.fixture(scope="module")
def tokenizer():
    return letter_tokenizer([*made_up("abst", 60), *made_up("z", 3), "a1", "x-y", "être"])


def test_words_are_letters_after_a_space_as_many_of_each_in_an_order_of_no_meaning(tokenizer):
    trained, tested = (lines_of(tokenizer, 50, trained=trained) for trained in (True, False))
    by_letter = {letter: sum(word[0].lower() == letter for word in trained) for letter in "abstzx"}
    assert by_letter == {"a": 40, "b": 40, "s": 40, "t": 40, "z": 3, "x": 1}  # of z and Z 4, and of X alone
    assert {word[0].lower() for word in tested} == set("abstz")
    assert not set(trained) & set(tested)
    assert not {"a1", "x-y", "être"} & {*trained, *tested}
    line, place = trained["saba"] if "saba" in trained else tested["saba"]
    assert tokenizer.convert_ids_to_tokens(line) == ["\n", "Ġsaba", "ĠhasĠtheĠfirstĠletter:", "ĠS"]
    assert place == 1
    assert list(trained) != sorted(trained)
    assert list(trained) == list(lines_of(tokenizer, 50, trained=True))


def test_every_word_is_read_once_after_ten_lines_or_more_and_at_the_word(tokenizer):
    (passages,) = FirstLetters(50, "of a test").passages(tokenizer, max_context=1024)
    read = [
        tokenizer.convert_ids_to_tokens(context[at])[1:]
        for context, places in zip(passages.contexts, passages.wanted, strict=True)
        for at in places
    ]
    assert read == list(passages.words)
    assert len(set(read)) == len(read)
    trained = {word for word, is_trained in zip(passages.words, passages.trained, strict=True) if is_trained}
    for context, places in zip(passages.contexts, passages.wanted, strict=True):
        assert context[0] == tokenizer.bos_token_id
        assert places[-1] == len(context) - 1
        before = tokenizer.convert_ids_to_tokens(context[1 : places[0]])
        assert before.count("\n") == EXAMPLES + 1
        shown = {token[1:] for token in tokenizer.convert_ids_to_tokens(context)[2::4]}
        assert shown <= trained or not shown & trained  # no test word among the examples of training, nor the reverse
    assert [passages.words[i][0].lower() for i in range(5)] == [
        "abcdefghijklmnopqrstuvwxyz"[passages.letter[i]] for i in range(5)
    ]


def test_the_task_keeps_the_contract(tokenizer):
    check_task("absorption", tokenizer=tokenizer, absorption_words=20)


def test_a_short_context_reads_fewer_words_and_one_that_holds_no_eleven_lines_is_told_so():
    lines = [([10 * i, 10 * i + 1, 10 * i + 2], 1) for i in range(30)]
    contexts, positions = contexts_of(lines, opening=7, max_context=40)
    assert {len(places) for places in positions} == {3}
    assert all(len(context) <= 40 for context in contexts)
    assert contexts[0][:4] == [7, 200, 201, 202]  # before the first word stand the last ones
    assert [contexts[0][at] for at in positions[0]] == [1, 11, 21]
    with pytest.raises(UserError, match="11 lines of 3 tokens are needed, and the language model takes 33"):
        contexts_of(lines, opening=7, max_context=33)


def test_a_vocabulary_without_words_and_a_package_that_is_missing_are_told_in_a_line(monkeypatch):
    with pytest.raises(UserError, match="leave the task out"):
        lines_of(letter_tokenizer(["être"]), 50, trained=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="probes need scikit-learn"):
        FirstLetters(50, "of a test")
