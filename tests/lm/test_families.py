"""In every family each site is what its definition says, seen by arithmetic, and the layers after it are replayed."""

from copy import deepcopy

import pytest
import torch
from tiny import D_MODEL, tiny_tokenizer
from tiny_families import N_LAYERS, TINY, built
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_bench.errors import UserError
from sae_bench.lm.hooks import intercept, run_until_seen
from sae_bench.lm.losses import token_losses
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import KINDS, SITE_KINDS, find_site
from sae_bench.lm.skeleton import build_skeleton

TOKENS = torch.arange(30).reshape(2, 15) + 5
LAYER = 1
LIKE_LLAMA = ("mistral", "qwen2", "qwen3", "phi3", "stablelm", "granite", "gpt_bigcode", "gpt_neo", "llava")
"""Whose modules are a part of others' modules: passes without values are slow."""


@pytest.fixture(scope="module", params=TINY)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return built(TINY[name].config())


@pytest.fixture(scope="module")
def sites(name, model):
    """Every kind of site in the layer."""
    kinds = [kind for kind in KINDS if kind != "resid_mid" or TINY[name].resid_mid]
    return {kind: find_site(model, kind, LAYER) for kind in kinds}


@torch.no_grad()
def seen(model, points):
    return run_until_seen(model, TOKENS, points)


def point(model, site):
    return model.get_submodule(site.path), site.side


def test_the_modules_of_a_family(name, sites):
    tiny, block = TINY[name], sites["resid_post"].path
    assert sites["mlp_out"].path == f"{block}.{tiny.mlp_out}"
    assert sites["attn_out"].path == f"{block}.{tiny.attn_out}"
    assert (sites["resid_pre"].path, sites["resid_pre"].side) == (block, "input")
    if tiny.resid_mid:
        assert (sites["resid_mid"].path, sites["resid_mid"].side) == (f"{block}.{tiny.resid_mid}", "input")


def test_attention_beside_the_mlp_has_no_middle(name, model):
    if TINY[name].resid_mid is None:
        with pytest.raises(UserError, match=r"attention, which may work in parallel to the MLP: there is no resid_mid"):
            find_site(model, "resid_mid", LAYER)


def test_resid_post_is_the_models_own(model):
    with torch.no_grad():
        hidden_states = model(TOKENS, output_hidden_states=True).hidden_states
    found = seen(model, {i: point(model, find_site(model, "resid_post", i)) for i in range(N_LAYERS)})
    for layer in range(N_LAYERS - 1):  # the last of the model's list has gone through the final norm
        assert torch.equal(found[layer], hidden_states[layer + 1])


def test_what_enters_plus_attention_is_the_middle_and_plus_mlp_what_leaves(name, model, sites):
    factor = TINY[name].factor
    at = seen(model, {kind: point(model, site) for kind, site in sites.items()})
    pre, attn, mlp = at["resid_pre"], factor * at["attn_add"], factor * at["mlp_out"]
    torch.testing.assert_close(at["resid_post"], pre + attn + mlp)
    assert min(attn.norm(), mlp.norm()) > 0.01 * pre.norm()
    if "resid_mid" in at:
        torch.testing.assert_close(at["resid_mid"], pre + attn)


def test_without_its_mlp_and_attention_a_layer_passes_the_residual_on(model, sites):
    """Not how the sites are found: the MLP's site and attention's at zero leave nothing of a layer but biases."""
    block = model.get_submodule(sites["resid_post"].path)
    plain = seen(model, {"pre": (block, "input"), "post": (block, "output")})
    with intercept(*point(model, sites["mlp_out"]), torch.zeros_like):
        without_mlp = seen(model, {"post": (block, "output")})
        with intercept(*point(model, sites["attn_out"]), torch.zeros_like):
            without = seen(model, {"post": (block, "output")})
    assert not torch.allclose(without_mlp["post"], plain["post"], atol=1e-2)
    gained = without["post"] - plain["pre"]
    torch.testing.assert_close(gained, gained[:1, :1].expand_as(gained), atol=1e-5, rtol=1e-4)


def test_replays_are_exact_and_those_of_changed_activations_are_a_pass_with_them_replaced(model, caplog):
    lm = LanguageModel(model, tiny_tokenizer(), "tiny")
    lm.check_logits()
    sites = [find_site(model, kind, layer) for layer in range(N_LAYERS) for kind in SITE_KINDS]
    clean = lm.clean_pass(TOKENS, sites)
    assert caplog.records == []
    assert all(lm._replayable.values())
    alone = {site: lm.capture(TOKENS, [site])[site].clone() for site in sites}
    for site in sites:
        assert torch.equal(clean.activations[site], alone[site]), site.name
        assert clean.activations[site].shape == (2, 15, site.d_in)
        for x_new in (alone[site] * 0.5 + 1, torch.zeros_like(alone[site])):
            kept = x_new.clone()
            hidden = clean.replay(site, x_new)
            assert torch.equal(x_new, kept), "a model may write over what it is given, not over ours"
            with intercept(*point(model, site), lambda x, new=x_new: new.reshape(x.shape).clone()), torch.no_grad():
                logits = model(TOKENS).logits
            assert torch.equal(lm.logits(hidden), logits), site.name


def test_an_identity_in_the_place_of_any_site_costs_nothing_and_zeros_cost_something(name, model, sites):
    lm = LanguageModel(model, tiny_tokenizer(), name)
    clean = lm.clean_pass(TOKENS, sites.values())
    assert all(lm._replayable[site] for site in sites.values())
    targets = TOKENS.flatten().roll(-1)
    for kind, site in sites.items():
        x = clean.activations[site]
        ends = [clean.replay(site, x_new).flatten(0, 1) for x_new in (x, torch.zeros_like(x))]
        kl = token_losses(lm, clean.hidden.flatten(0, 1), ends, targets).kl
        assert torch.equal(kl[0], torch.zeros_like(kl[0])), kind
        assert kl[1].mean() > 1e-4, kind


@pytest.mark.parametrize("replayable", [True, False])
def test_a_change_in_the_middle_is_the_same_change_of_what_attention_adds(name, model, sites, replayable):
    """The stream goes on beside the module that is given it: a change there alone would be lost in the sum."""
    if "resid_mid" not in sites:
        return
    lm = LanguageModel(model, tiny_tokenizer(), name)
    middle, attention = sites["resid_mid"], sites["attn_add"]
    clean = lm.clean_pass(TOKENS, [middle, attention])
    if not replayable:
        lm._replayable = dict.fromkeys(lm._replayable, False)
    change = 0.1 * torch.randn(clean.hidden.shape, generator=torch.Generator().manual_seed(0))
    at = clean.activations
    by = clean.replay(middle, at[middle] + change), clean.replay(attention, at[attention] + change / TINY[name].factor)
    torch.testing.assert_close(*by, rtol=1e-4, atol=1e-4)
    assert (by[0] - clean.hidden).norm() > 0.01 * clean.hidden.norm()
    assert torch.equal(clean.replay(middle, at[middle]), clean.hidden)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_in_a_coarse_dtype_is_no_mismatch(model, sites, dtype):
    coarse = deepcopy(model).to(dtype)
    assert all(find_site(coarse, kind, LAYER) == site for kind, site in sites.items() if kind in SITE_KINDS)


@pytest.mark.parametrize("name", [name for name in TINY if name not in LIKE_LLAMA], indirect=True, scope="module")
def test_a_dry_run_names_the_very_modules_that_a_run_finds_and_refuses_a_middle_that_is_none(model):
    """A norm behind attention (Gemma, GLM-4, OLMo 2) is seen without values; so is attention beside the MLP."""
    mode = FakeTensorMode()
    with mode:
        planned = build_skeleton(model.config).eval()

    def place(model, kind):
        try:
            return find_site(model, kind, LAYER)
        except UserError as error:
            return str(error)

    for kind in ("mlp_out", "attn_add", "resid_mid"):  # the others are named after these, or are the layer itself
        with mode:
            without_values = place(planned, kind)
        assert without_values == place(model, kind)


def test_all_are_as_wide_as_the_residual_stream_but_the_heads(sites):
    assert {site.d_in for kind, site in sites.items() if kind != "attn_out"} == {D_MODEL}
