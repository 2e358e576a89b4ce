"""The language model as the harness uses it: captures stop early, replays are exact, logits are the model's own."""

import hashlib
import logging
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tiny import D_MODEL, FAMILIES, N_LAYERS, save_tiny, tiny_gemma2, tiny_gpt_neox, tiny_llama
from tiny import tiny_tokenizer as tokenizer_of
from torch import nn
from transformers import CohereConfig, CohereForCausalLM

from sae_bench.errors import UserError
from sae_bench.lm.load import hub_commit, load_language_model
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.model_names import HUB_MODELS, resolve_model
from sae_bench.lm.sites import SITE_KINDS, find_site, intercept

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
    calls = [count_calls(layer) for layer in lm._backbone.layers]
    captured = lm.capture(TOKENS, sites[:3])
    assert list(map(len, calls)) == [1, 1, 0, 0]
    for site in sites[:3]:
        assert captured[site].shape == (2, 15, site.d_in)
        assert torch.equal(captured[site], clean.activations[site])
    alone = lm.capture(TOKENS, [sites[2]])  # attention's heads: the MLP of the layer need not run
    mlp = count_calls(lm._backbone.layers[LAYER].mlp)
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
    calls = [count_calls(layer) for layer in lm._backbone.layers]
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


def test_a_model_that_scales_its_logits_is_refused():
    sizes = {"intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 2, "pad_token_id": 0}
    cohere = CohereForCausalLM(CohereConfig(vocab_size=64, hidden_size=32, logit_scale=0.5, **sizes))
    with pytest.raises(UserError, match="CohereForCausalLM changes its logits in an unknown way"):
        wrap(cohere).check_logits()


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_a_folder(tmp_path, family):
    lm = load_language_model(str(save_tiny(tmp_path, family)), device="cpu", dtype=torch.float32)
    original = wrap(FAMILIES[family](), family)
    assert (lm.n_layers, lm.d_model, lm.max_context, lm.revision) == (N_LAYERS, D_MODEL, 128, None)
    assert (lm.name, lm.device, lm.dtype) == (str(tmp_path), torch.device("cpu"), torch.float32)
    assert lm.tokenizer.bos_token_id == (0 if family == "gpt_neox" else 2)
    assert lm.special_ids == {0, 1, 2, 3}
    assert len(lm.tokenizer) == lm.config.vocab_size
    assert torch.equal(lm.clean_pass(TOKENS).hidden, original.clean_pass(TOKENS).hidden)
    assert lm.weight_hash() == original.weight_hash()
    assert not any(weight.requires_grad for weight in lm.model.parameters())
    assert not lm.model.training


def test_gemma2_loads_with_the_attention_that_caps_its_scores(tmp_path):
    folder = str(save_tiny(tmp_path, "gemma2"))
    assert load_language_model(folder, device="cpu", dtype=torch.float32).config._attn_implementation == "eager"


def test_dtype_is_the_one_asked_for(tmp_path):
    lm = load_language_model(str(save_tiny(tmp_path, "llama")), device="cpu", dtype=torch.bfloat16)
    site = find_site(lm.model, "resid_post", LAYER)
    assert lm.dtype == lm.capture(TOKENS, [site])[site].dtype == torch.bfloat16


def test_weight_hash_is_the_documented_one_and_sees_every_change():
    lm = wrap(tiny_llama())
    digest = hashlib.sha256()
    for name, weight in sorted(lm.model.named_parameters()):
        digest.update(f"{name} torch.float32 {tuple(weight.shape)}\n".encode() + weight.numpy().tobytes())
    assert lm.weight_hash() == digest.hexdigest()
    changed = tiny_llama()
    with torch.no_grad():
        changed.model.norm.weight[-1] += 1e-6
    assert wrap(changed).weight_hash() != lm.weight_hash()
    assert wrap(tiny_llama().to(torch.bfloat16)).weight_hash() != lm.weight_hash()


def test_short_names():
    assert resolve_model("gemma-2-2b") == ("google/gemma-2-2b", "google/gemma-2-2b")
    assert resolve_model("owner/some-model_1.5") == ("owner/some-model_1.5", "owner/some-model_1.5")
    assert all(hub_name.count("/") == 1 for hub_name in HUB_MODELS.values())


@pytest.mark.parametrize("name", ["gema-2-2b", "./gemma-2-2b", "/no/such/folder"])
def test_names_that_mean_nothing(name):
    with pytest.raises(UserError, match=r"unknown model .*gemma-2-2b") as error:
        resolve_model(name)
    assert "\n" not in str(error.value)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(UserError, match=r"the folder has no config\.json"):
        load_language_model(str(tmp_path), device="cpu", dtype=torch.float32)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_language_model(str(tmp_path), device="cpu", dtype=torch.float32)
    assert "\n" not in str(error.value)
    (save_tiny(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be loaded .*model\.safetensors") as error:
        load_language_model(str(tmp_path), device="cpu", dtype=torch.float32)
    assert "\n" not in str(error.value)


def _hub_error(kind):
    if kind is LocalEntryNotFoundError:
        return kind("no such entry")
    return kind("refused", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            GatedRepoError,
            r'"owner/name" is gated: accept its licence at https://huggingface\.co/owner/name and run `hf a',
        ),
        (RepositoryNotFoundError, r'"owner/name" is not on the hub: check the name'),
        (RevisionNotFoundError, r'"owner/name" has no revision "v9"'),
        (LocalEntryNotFoundError, r'"owner/name" cannot be downloaded: check the network, or give a local folder'),
    ],
)
def test_what_the_hub_refuses_is_explained(monkeypatch, kind, message):
    def refuse(*args, **kwargs):
        raise OSError("We couldn't connect to the hub\nand so on") from _hub_error(kind)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(UserError, match=message) as error:
        load_language_model("owner/name", device="cpu", dtype=torch.float32, revision="v9")
    assert "\n" not in str(error.value)


def test_a_model_from_the_hub_is_named_by_its_commit(tmp_path, monkeypatch):
    """Offline, from a cache laid out as the hub's client lays it out."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--tiny"
    save_tiny(repository / "snapshots" / commit, "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    lm = load_language_model("owner/tiny", device="cpu", dtype=torch.float32)
    assert (lm.name, lm.revision) == ("owner/tiny", commit)
    assert hub_commit("owner/tiny", commit) == commit
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_language_model("owner/absent", device="cpu", dtype=torch.float32)
