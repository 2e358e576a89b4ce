"""Losses from bfloat16 products against whole logits in float64: how far they may be off, and where they are exact."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sae_bench.lm import losses as lm_loss
from sae_bench.lm.losses import TokenLosses, error_bound, token_losses
from sae_bench.lm.model import LanguageModel

M, WIDTH, N_VOCAB = 300, 64, 1500


class Head(LanguageModel):
    """A language model that is nothing but its LM head."""

    bfloat16_losses = True

    def __init__(self, scale: float = 1.0, cap: float | None = None, bias: bool = False) -> None:
        draw = torch.Generator().manual_seed(0)
        self._head = nn.Linear(WIDTH, N_VOCAB, bias=bias).requires_grad_(False)
        self._head.weight.copy_(scale * torch.randn(N_VOCAB, WIDTH, generator=draw))
        if bias:
            self._head.bias.copy_(torch.randn(N_VOCAB, generator=draw))
        self.model = type("Model", (), {"get_output_embeddings": lambda _: self._head})()  # type: ignore[assignment]
        self.config = type("Config", (), {"final_logit_softcapping": cap})()  # type: ignore[assignment]
        self.dtype = torch.float32


def hidden(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(M, WIDTH, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.randint(N_VOCAB, (M,), generator=torch.Generator().manual_seed(9))


def reference(head: Head, clean: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and KL, [M], of one model from whole logits in float64."""

    def log_p(states: Tensor) -> Tensor:
        bias = None if head._head.bias is None else head._head.bias.double()
        logits = functional.linear(states.double(), head.head_weight.double(), bias)
        return head.cap(logits).log_softmax(1)

    p, q = log_p(clean), log_p(changed)
    return -q.gather(1, TARGETS[:, None])[:, 0], (p.exp() * (p - q)).sum(1)


def errors(head: Head, clean: Tensor, changed: list[Tensor]) -> tuple[TokenLosses, Tensor]:
    """What is found, and how far it is off: [2, models, M]."""
    found = token_losses(head, clean, changed, TARGETS)
    expected = torch.stack([torch.stack(reference(head, clean, states)) for states in changed], dim=1)
    return found, torch.stack([found.ce, found.kl]).double() - expected


SPLICES = {
    "small": [0.01, 0.1],
    "of the size of the states": [0.5, 1.0],
    "far larger than the states": [5.0, 20.0],
}


@pytest.mark.parametrize("cap", [None, 5.0], ids=["uncapped", "soft-capped"])
@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0], ids=["flat", "peaked", "one word takes all"])
@pytest.mark.parametrize("sizes", SPLICES.values(), ids=SPLICES)
def test_mean_losses_are_within_the_bound(sizes: list[float], scale: float, cap: float | None) -> None:
    """1e-4 nats, for every nat of KL above the first; and float32's own rounding where losses are hundreds of nats."""
    head, clean = Head(scale, cap), hidden(1)
    found, error = errors(head, clean, [clean + hidden(2 + i, size) for i, size in enumerate(sizes)])
    allowed = lm_loss.MAX_ERROR * found.kl.mean(-1).clamp(min=1) + 1e-6 * torch.stack([found.ce, found.kl]).mean(-1)
    assert (error.mean(-1).abs() <= allowed).all(), error.mean(-1)


def test_tied_words_and_words_far_apart_are_within_the_bound() -> None:
    """Every word twice, so that two lead with one logit; and a few words far above the others."""
    head, clean = Head(0.3, bias=True), hidden(1)
    head._head.weight[1::2] = head._head.weight[::2]
    head._head.bias[1::2] = head._head.bias[::2]
    head._head.bias[:6] += 40
    _, error = errors(head, clean, [clean + hidden(2, 0.3)])
    assert (error.mean(-1).abs() <= lm_loss.MAX_ERROR).all(), error.mean(-1)


@pytest.mark.parametrize("cap", [None, 5.0], ids=["uncapped", "soft-capped"])
def test_what_changes_nothing_costs_exactly_nothing(cap: float | None) -> None:
    """Beside a splice that does: the identity's cross-entropy is the clean one's, bit for bit, and its KL is 0."""
    head, clean = Head(0.3, cap, bias=True), hidden(1)
    found = token_losses(head, clean, [clean + hidden(2, 0.5), clean.clone()], TARGETS)
    assert torch.equal(found.ce[1], found.ce_clean)
    assert found.kl[1].tolist() == [0] * M
    assert (found.kl[0] > 0).all()


def test_the_clean_loss_is_that_of_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    head, clean = Head(0.3), hidden(1)
    mine = token_losses(head, clean, [clean + hidden(2)], TARGETS)
    monkeypatch.setattr(head, "bfloat16_losses", False)
    assert torch.equal(mine.ce_clean, token_losses(head, clean, [clean + hidden(2)], TARGETS).ce_clean)


def test_neither_tiles_nor_other_models_change_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    head, clean = Head(0.3), hidden(1)
    changed = [clean + hidden(2 + i, 0.3) for i in range(4)]
    together = token_losses(head, clean, changed, TARGETS)
    for i, states in enumerate(changed):
        alone = token_losses(head, clean, [states], TARGETS)
        assert torch.equal(alone.ce[0], together.ce[i])
        assert torch.equal(alone.kl[0], together.kl[i])
    monkeypatch.setitem(lm_loss.TILE_BYTES, "cpu", 4 * 50 * 200)
    monkeypatch.setattr(lm_loss, "TOKENS_AT_ONCE", 50)
    tiled = token_losses(head, clean, changed, TARGETS)
    for name in ("ce_clean", "ce", "kl"):
        torch.testing.assert_close(getattr(tiled, name), getattr(together, name), rtol=0, atol=2e-4)


def test_the_measured_rounding_is_the_difference_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_loss, "LIKELY", torch.inf)
    monkeypatch.setattr(lm_loss, "MAX_ERROR", torch.inf)
    head, clean = Head(0.3), hidden(1)
    found, error = errors(head, clean, [clean + hidden(2, 0.3)])
    step = M // lm_loss.SAMPLE
    assert found.rounding.shape == (2, 1, -(-M // step))
    torch.testing.assert_close(found.rounding.double(), error[:, :, ::step], rtol=0, atol=5e-6)
    assert found.rounding.abs().max() > 1e-3, "this test sees no rounding"


def test_models_above_the_bound_are_done_again_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every word left to bfloat16 a large splice is off by more than the bound, and a small one is not."""
    monkeypatch.setattr(lm_loss, "LIKELY", torch.inf)
    head, clean = Head(1.0), hidden(1)
    changed = [clean + hidden(2, 3.0), clean + hidden(3, 1e-3)]
    found, error = errors(head, clean, changed)
    assert found.rounding[:, 0].abs().max() == 0
    assert found.rounding[:, 1].abs().max() > 0
    with monkeypatch.context() as patch:
        patch.setattr(head, "bfloat16_losses", False)
        in_float32 = token_losses(head, clean, changed, TARGETS)
    assert torch.equal(found.ce[0], in_float32.ce[0])
    assert torch.equal(found.kl[0], in_float32.kl[0])
    assert error[:, 1].mean(-1).abs().max() < lm_loss.MAX_ERROR
    monkeypatch.setattr(lm_loss, "MAX_ERROR", torch.inf)
    assert errors(head, clean, changed)[1][:, 0].abs().max() > 1e-3


def test_likely_words_are_what_keeps_the_error_low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_loss, "MAX_ERROR", torch.inf)
    head, clean = Head(0.5), hidden(1)
    changed = [clean + hidden(2, 0.5)]
    with_them = errors(head, clean, changed)[1].std()
    monkeypatch.setattr(lm_loss, "LIKELY", torch.inf)
    assert errors(head, clean, changed)[1].std() > 5 * with_them


def test_the_bound_is_the_mean_and_two_standard_errors() -> None:
    assert error_bound(torch.tensor([-3.0, -1.0, -3.0, -1.0])) == pytest.approx(2 + 2 * 1 / 2)


def test_one_prediction_and_none_are_scored() -> None:
    head, clean = Head(0.3), hidden(1)
    for m in (0, 1):
        found = token_losses(head, clean[:m], [clean[:m] + 0.1], TARGETS[:m])
        assert found.ce.shape == found.kl.shape == (1, m)
    ce, kl = reference(head, clean, clean + 0.1)
    assert found.ce[0, 0] == pytest.approx(float(ce[0]), abs=1e-4)
    assert found.kl[0, 0] == pytest.approx(float(kl[0]), abs=1e-4)
