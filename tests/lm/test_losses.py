"""Losses computed tile by tile against torch's on the whole logits in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sae_bench.lm import losses as lm_loss
from sae_bench.lm.losses import log_normaliser, token_losses
from sae_bench.lm.model import LanguageModel

M, WIDTH, N_VOCAB = 23, 6, 37


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 tokens at once and 7 words a tile: 5 does not divide 23, and 7 does not divide 37."""
    monkeypatch.setattr(lm_loss, "TOKENS_AT_ONCE", 5)
    monkeypatch.setitem(lm_loss.TILE_BYTES, "cpu", 4 * 5 * 7)


class Head(LanguageModel):
    """An unembedding, soft-capped at 30 as Gemma's; counts what it is asked for."""

    def __init__(self, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        draw = torch.Generator().manual_seed(0)
        self.weight = scale * torch.randn(WIDTH, N_VOCAB, generator=draw, dtype=torch.float64)
        self.dtype = dtype
        self.asked: list[tuple[int, int]] = []

    n_vocab = N_VOCAB

    def logits(self, hidden: Tensor, words: slice) -> Tensor:
        logits = 30 * torch.tanh(hidden.double() @ self.weight[:, words] / 30)
        self.asked.append(tuple(logits.shape))
        return logits.to(self.dtype)

    def logit_of(self, hidden: Tensor, word: Tensor) -> Tensor:
        whole = 30 * torch.tanh(hidden.double() @ self.weight / 30)
        return whole.gather(1, word[:, None])[:, 0].to(self.dtype)


class Of(Head):
    """A head whose logits are a function of hidden states and words."""

    def __init__(self, logits: Callable[[Tensor, slice], Tensor]) -> None:
        self.logits = logits  # type: ignore[method-assign]

    def logit_of(self, hidden: Tensor, word: Tensor) -> Tensor:
        return self.logits(hidden, slice(0, N_VOCAB)).gather(1, word[:, None])[:, 0]


def hidden(seed: int) -> Tensor:
    return torch.randn(M, WIDTH, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.randint(N_VOCAB, (M,), generator=torch.Generator().manual_seed(9))


def reference(head: Head, states: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and log-probabilities from the whole logits in float64."""
    logits = Head.logits(head, states, slice(None)).double()
    return functional.cross_entropy(logits, TARGETS, reduction="none"), functional.log_softmax(logits, dim=1)


def test_losses_equal_those_of_whole_logits() -> None:
    head, clean, changed = Head(), hidden(1), [hidden(2), hidden(3)]
    found = token_losses(head, clean, changed, TARGETS)
    ce_clean, log_p = reference(head, clean)
    assert found.ce.shape == found.kl.shape == (2, M)
    torch.testing.assert_close(found.ce_clean.double(), ce_clean, rtol=1e-5, atol=1e-5)
    for i, states in enumerate(changed):
        ce, log_q = reference(head, states)
        torch.testing.assert_close(found.ce[i].double(), ce, rtol=1e-5, atol=1e-5)
        kl = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
        assert kl.min() > 0.1
        torch.testing.assert_close(found.kl[i].double(), kl, rtol=1e-5, atol=1e-5)


def test_each_tile_is_computed_once_for_every_model_and_is_small() -> None:
    head = Head()
    token_losses(head, hidden(1), [hidden(2), hidden(3)], TARGETS)
    assert sum(rows * words for rows, words in head.asked) == 3 * M * N_VOCAB
    assert max(rows * words for rows, words in head.asked) == 5 * 7


def test_tiling_does_not_change_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    tiled = token_losses(Head(), hidden(1), [hidden(2)], TARGETS)
    for size in (1, 100, 1 << 20):
        monkeypatch.setattr(lm_loss, "TOKENS_AT_ONCE", size)
        monkeypatch.setitem(lm_loss.TILE_BYTES, "cpu", 4 * size)
        other = token_losses(Head(), hidden(1), [hidden(2)], TARGETS)
        for name in ("ce_clean", "ce", "kl"):
            torch.testing.assert_close(getattr(other, name), getattr(tiled, name), rtol=1e-5, atol=1e-5)


def test_equal_hidden_states_cost_exactly_nothing() -> None:
    found = token_losses(Head(), hidden(1), [hidden(2), hidden(1).clone()], TARGETS)
    assert torch.equal(found.ce[1], found.ce_clean)
    assert found.kl[1].tolist() == [0] * M
    assert (found.kl[0] > 0).all()


def test_targets_are_looked_up_across_tiles() -> None:
    """Logit v of word v: CE = logsumexp - target, for the first and last word and both sides of a tile's edge."""
    targets = torch.tensor([0, 6, 7, N_VOCAB - 1])

    def ramp(states: Tensor, words: slice) -> Tensor:
        return torch.arange(words.start, words.stop, dtype=torch.float32).expand(len(states), -1)

    found = token_losses(Of(ramp), torch.zeros(4, 1), [], targets)
    log_z = torch.arange(N_VOCAB, dtype=torch.float64).logsumexp(0)
    torch.testing.assert_close(found.ce_clean.double(), log_z - targets, rtol=1e-5, atol=1e-5)


def test_extreme_logits_give_finite_losses() -> None:
    """+-1e4: softmax underflows to exactly 0, and log(softmax) would be -inf."""

    def spiked(states: Tensor, words: slice) -> Tensor:
        """+1e4 for the word that the hidden state names, -1e4 for all others."""
        named = torch.arange(words.start, words.stop) == states.long()
        return torch.where(named, 1e4, -1e4)

    clean, changed = torch.tensor([[3.0], [3.0], [30.0]]), torch.tensor([[3.0], [20.0], [2.0]])
    found = token_losses(Of(spiked), clean, [changed], torch.tensor([3, 3, 5]))
    assert found.ce_clean.tolist() == [0, 0, 2e4]
    assert found.ce.tolist() == [[0, 2e4, 2e4]]
    assert found.kl[0].tolist() == pytest.approx([0, 2e4, 2e4], rel=1e-6)


def test_without_changed_models_there_is_the_clean_loss() -> None:
    head = Head()
    found = token_losses(head, hidden(1), [], TARGETS)
    assert found.ce.shape == found.kl.shape == (0, M)
    torch.testing.assert_close(found.ce_clean.double(), reference(head, hidden(1))[0], rtol=1e-5, atol=1e-5)


def test_the_normaliser_alone_is_that_of_the_whole_logits() -> None:
    head, states = Head(), hidden(1)
    whole = head.logits(states, slice(None)).double().logsumexp(1)
    torch.testing.assert_close(log_normaliser(head, states).double(), whole, rtol=1e-6, atol=1e-6)
