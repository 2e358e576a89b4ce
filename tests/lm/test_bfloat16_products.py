"""A float32 language model that multiplies in bfloat16: what stays exact, what stays float32, and that it does."""

import pytest
import torch
from tiny import FAMILIES, tiny_tokenizer

from sae_bench.device import multiplies_bfloat16
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import find_site

TOKENS = torch.arange(10, 40).view(3, 10)


def model(family: str, bfloat16_products: bool = True) -> LanguageModel:
    lm = LanguageModel(FAMILIES[family](), tiny_tokenizer(family), family)
    lm.bfloat16_products = bfloat16_products
    return lm


@pytest.mark.parametrize("kind", ["resid_post", "mlp_out", "attn_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_capture_and_replay_give_the_clean_pass_bit_for_bit(family: str, kind: str) -> None:
    lm = model(family)
    site = find_site(lm.model, kind, 1)
    clean = lm.clean_pass(TOKENS, [site])
    assert lm._replayable[site], "the replay would run the whole model"
    assert torch.equal(clean.replay(site, clean.activations[site]), clean.hidden)
    assert torch.equal(lm.capture(TOKENS, [site])[site], clean.activations[site])


@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_rounded_and_little_else_changes(family: str) -> None:
    lm, exact = model(family), model(family, bfloat16_products=False)
    site = find_site(lm.model, "resid_post", 2)
    ours, theirs = (of.clean_pass(TOKENS, [site]) for of in (lm, exact))
    for a, b in ((ours.hidden, theirs.hidden), (ours.activations[site], theirs.activations[site])):
        assert 1e-4 < (a - b).norm() / b.norm() < 0.03
    assert lm.weight_hash() == exact.weight_hash()


def test_the_residual_stream_and_the_weights_stay_float32() -> None:
    lm = model("gemma3")
    site = find_site(lm.model, "resid_post", 1)
    x = lm.capture(TOKENS, [site])[site]
    assert x.dtype == torch.float32
    assert not torch.equal(x, x.bfloat16().float())
    assert {weight.dtype for weight in lm.model.parameters()} == {torch.float32}


def test_records_say_in_what_precision_matrices_were_multiplied() -> None:
    assert model("gemma3").precision == "float32, bfloat16 products"
    assert model("gemma3", bfloat16_products=False).precision == "float32"


def test_only_a_cpu_with_the_instructions_multiplies_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for supported in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        assert multiplies_bfloat16(torch.device("cpu")) is supported
    assert not multiplies_bfloat16(torch.device("meta"))
