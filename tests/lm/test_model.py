"""The language model as the harness uses it: captures stop early, replays are exact, logits are the model's own."""

import logging

import pytest
import torch
from tiny import D_MODEL, FAMILIES, N_LAYERS, tiny_gemma2, tiny_gpt_neox, tiny_llama
from tiny import tiny_tokenizer as tokenizer_of
from torch import nn
from transformers import CohereConfig, CohereForCausalLM

from sae_bench.errors import UserError
from sae_bench.lm.hooks import intercept
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import SITE_KINDS, find_site

TOKENS = torch.arange(30).reshape(2, 15) + 5
LAYER = 1
BUILDERS = {**FAMILIES, "gpt_neox_serial": lambda: tiny_gpt_neox(use_parallel_residual=False)}


def wrap(model, family="gemma2"):
    return LanguageModel(model, tokenizer_of(family), "tiny")


@pytest.fixture(params=BUILDERS)
def lm(request):
    return wrap(BUILDERS[request.param](), request.param)


def sites_of(lm):
    """Every kind of site, and paths that reach into a layer and at a layer's own input."""
    layer = find_site(lm.model, "resid_post", LAYER).path
    paths = (f"path:{layer}@input", f"path:{layer}.mlp@input", f"path:{layer}.mlp")
    return [find_site(lm.model, kind, LAYER) for kind in (*SITE_KINDS, *paths)]


def count_calls(module):
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@torch.no_grad()
def forward_with(lm, site, x_new):
    """The model's own logits with a site's activation replaced, in one plain forward pass."""
    with intercept(lm.model.get_submodule(site.path), site.side, lambda _: x_new):
        return lm.model(TOKENS).logits


def test_hidden_and_logits_are_the_models_own(lm):
    hidden = lm.clean_pass(TOKENS).hidden
    assert hidden.shape == (2, 15, D_MODEL)
    with torch.no_grad():
        expected = lm.model(TOKENS).logits
    assert torch.equal(lm.logits(hidden), expected)
    torch.testing.assert_close(lm.logits(hidden[1, 3:10]), expected[1, 3:10])
    torch.testing.assert_close(lm.logits(hidden, slice(7, 50)), expected[..., 7:50])
    assert lm.n_vocab == expected.shape[-1]
    lm.check_logits()


def test_logits_in_bfloat16_come_in_float32():
    lm = wrap(tiny_gemma2().to(torch.bfloat16))
    hidden = lm.clean_pass(TOKENS).hidden
    assert hidden.dtype == torch.bfloat16
    logits = lm.logits(hidden)
    assert logits.dtype == torch.float32
    uncapped = lm.model.lm_head(hidden).float()
    assert torch.equal(logits, 2 * torch.tanh(uncapped / 2))  # the cap itself in float32, where the model's is coarser
    torch.testing.assert_close(logits, lm.model(TOKENS).logits.float(), atol=0.02, rtol=0.02)
    lm.check_logits()


def test_capture_is_the_clean_pass_and_ends_at_the_deepest_site(lm):
    sites = sites_of(lm)
    clean = lm.clean_pass(TOKENS, sites)
    calls = [count_calls(layer) for layer in lm.backbone.layers]
    captured = lm.capture(TOKENS, sites[:3])
    assert list(map(len, calls)) == [1, 1, 0, 0]
    for site in sites[:3]:
        assert captured[site].shape == (2, 15, site.d_in)
        assert torch.equal(captured[site], clean.activations[site])
    alone = lm.capture(TOKENS, [sites[2]])  # attention's heads: the MLP of the layer need not run
    mlp = count_calls(lm.backbone.layers[LAYER].mlp)
    lm.capture(TOKENS, [sites[2]])
    assert mlp == []
    assert torch.equal(alone[sites[2]], captured[sites[2]])
    assert not captured[sites[0]].requires_grad
    assert not captured[sites[0]].is_inference()  # training needs ordinary tensors


def test_replaying_what_was_captured_gives_the_clean_result_bit_for_bit(lm, caplog):
    sites = sites_of(lm)
    clean = lm.clean_pass(TOKENS, sites)
    for site in sites:
        assert torch.equal(clean.replay(site, clean.activations[site]), clean.hidden), site.name
    assert caplog.records == []  # nothing fell back to whole passes
    assert all(lm._replayable.values())


def test_replay_of_changed_activations_is_a_forward_pass_with_them_replaced(lm):
    sites = sites_of(lm)
    clean = lm.clean_pass(TOKENS, sites)
    for site in sites:
        x_new = clean.activations[site] * 0.5 + torch.randn(site.d_in, generator=torch.Generator().manual_seed(1))
        hidden = clean.replay(site, x_new)
        assert not torch.allclose(hidden, clean.hidden, atol=0.1), site.name
        assert torch.equal(lm.logits(hidden), forward_with(lm, site, x_new)), site.name


def test_a_replay_runs_the_layers_after_the_site_only(lm):
    resid, mlp, *_ = sites_of(lm)
    clean = lm.clean_pass(TOKENS, [resid, mlp])
    calls = [count_calls(layer) for layer in lm.backbone.layers]
    clean.replay(resid, clean.activations[resid])
    assert list(map(len, calls)) == [0, 0, 1, 1]
    clean.replay(mlp, clean.activations[mlp])
    assert list(map(len, calls)) == [0, 1, 2, 2]


def test_replay_at_the_last_layer_and_in_another_dtype():
    lm = wrap(tiny_gemma2().to(torch.bfloat16))
    site = find_site(lm.model, "resid_post", N_LAYERS - 1)
    clean = lm.clean_pass(TOKENS, [site])
    assert clean.calls == {}
    hidden = clean.replay(site, clean.activations[site].float())
    assert hidden.dtype == torch.bfloat16
    assert torch.equal(hidden, clean.hidden)


@pytest.mark.parametrize("family", ["gemma2", "llama"])  # with soft-capped logits and without
def test_gradients_flow_through_a_replay(family):
    lm = wrap(FAMILIES[family](), family)
    site = find_site(lm.model, "mlp_out", LAYER)
    clean = lm.clean_pass(TOKENS, [site])
    assert not clean.replay(site, clean.activations[site]).requires_grad
    x = clean.activations[site].clone().requires_grad_()
    lm.logits(clean.replay(site, x)[0, -1:]).square().sum().backward()
    assert x.grad[0].norm() > 0
    assert x.grad[1].norm() == 0  # the other context


class _WithMemory(nn.Module):
    """Wraps decoder layers that share a memory: the first one writes it, the last one adds it and clears it."""

    def __init__(self, layer, memory, writes):
        super().__init__()
        self.layer, self.memory, self.writes = layer, memory, writes
        self.self_attn, self.mlp = layer.self_attn, layer.mlp

    def forward(self, hidden, *args, **kwargs):
        if self.writes:
            self.memory["x"] = hidden
            return self.layer(hidden, *args, **kwargs)
        return self.layer(hidden, *args, **kwargs) + self.memory.pop("x", 0)


def test_a_model_that_cannot_be_replayed_is_run_whole_and_says_so_once(caplog):
    model, memory = tiny_llama(), {}
    layers = model.model.layers
    layers[0], layers[3] = _WithMemory(layers[0], memory, True), _WithMemory(layers[3], memory, False)
    lm = wrap(model)
    site = find_site(model, "resid_post", LAYER)
    clean = lm.clean_pass(TOKENS, [site])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "layer_1.resid_post: replaying the layers after it is not exact" in caplog.text
    again = lm.clean_pass(TOKENS, [site])
    assert len(caplog.records) == 1
    assert torch.equal(again.replay(site, again.activations[site]), clean.hidden)
    x_new = clean.activations[site] + 1
    assert torch.equal(lm.logits(clean.replay(site, x_new)), forward_with(lm, site, x_new))


def test_a_site_outside_the_layers_is_run_whole(caplog):
    lm = wrap(tiny_llama())
    site = find_site(lm.model, "path:model.embed_tokens", 0)
    clean = lm.clean_pass(TOKENS, [site])
    assert "path.model.embed_tokens" in caplog.text
    x_new = clean.activations[site] * 2
    assert torch.equal(lm.logits(clean.replay(site, x_new)), forward_with(lm, site, x_new))


def test_activations_must_be_finite_and_as_wide_as_the_site():
    lm = wrap(tiny_llama())
    site = find_site(lm.model, "attn_out", LAYER)
    with pytest.raises(UserError, match=r"layer_1\.attn_out: model\.layers\.1\.self_attn\.o_proj is 24 wide, not 48"):
        wrap(tiny_llama(head_dim=12)).capture(TOKENS, [site])
    lm.model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(
        UserError, match=r"attn_out: activations in torch\.float32 are not all finite: get the model again"
    ):
        lm.capture(TOKENS, [site])
    with pytest.raises(UserError, match="not all finite"):
        lm.clean_pass(TOKENS, [site])


def test_a_model_that_scales_its_logits_by_something_else_than_its_configuration_says_is_refused():
    sizes = {"intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 2, "pad_token_id": 0}
    cohere = CohereForCausalLM(CohereConfig(vocab_size=64, hidden_size=32, logit_scale=0.5, **sizes))
    wrap(cohere).check_logits()
    cohere.logit_scale = 0.4
    with pytest.raises(UserError, match="CohereForCausalLM changes its logits in an unknown way"):
        wrap(cohere).check_logits()
