"""attn_add, resid_pre and resid_mid are parts of one sum in every family; to change one is to change the sum."""

from dataclasses import replace

import pytest
import torch
from tiny import D_MODEL, FAMILIES, N_LAYERS, tiny_gpt_neox, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, OPTConfig

from sae_bench.errors import UserError
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import KINDS, find_site, kind_of

TOKENS = torch.arange(30).reshape(2, 15) + 5


def tiny_opt():
    sizes = {"hidden_size": D_MODEL, "word_embed_proj_dim": D_MODEL, "num_hidden_layers": N_LAYERS, "ffn_dim": 56}
    more = {"num_attention_heads": 2, "vocab_size": len(tiny_tokenizer()), "max_position_embeddings": 128}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(OPTConfig(**sizes, **more, init_std=0.2)).eval()


IN_A_ROW = {**FAMILIES, "gpt_neox": lambda: tiny_gpt_neox(use_parallel_residual=False), "opt": tiny_opt}
LAYER = 2


def pass_of(model, family, *kinds):
    lm = LanguageModel(model, tiny_tokenizer(family), family)
    found = {kind: find_site(model, kind, LAYER) for kind in kinds}
    return lm.clean_pass(TOKENS, found.values()), found


@pytest.mark.parametrize("family", IN_A_ROW)
def test_what_enters_plus_attention_is_the_middle_and_plus_mlp_what_leaves(family):
    clean, found = pass_of(IN_A_ROW[family](), family, *KINDS)
    at = {kind: clean.activations[site] for kind, site in found.items()}
    torch.testing.assert_close(at["resid_mid"], at["resid_pre"] + at["attn_add"])
    torch.testing.assert_close(at["resid_post"], at["resid_mid"] + at["mlp_out"])
    assert not torch.allclose(at["resid_mid"], at["resid_pre"], atol=1e-3)


@pytest.mark.parametrize("replayable", [True, False])
@pytest.mark.parametrize("family", IN_A_ROW)
def test_a_change_in_the_middle_is_the_same_change_of_what_attention_adds(family, replayable):
    """The stream goes on beside the module that is given it: a change there alone would be lost in the sum."""
    clean, found = pass_of(IN_A_ROW[family](), family, "resid_mid", "attn_add")
    if not replayable:
        clean.lm._replayable = dict.fromkeys(clean.lm._replayable, False)
    change = 0.1 * torch.randn(clean.hidden.shape, generator=torch.Generator().manual_seed(0))
    by = [clean.replay(site, clean.activations[site] + change) for site in found.values()]
    torch.testing.assert_close(*by, rtol=1e-4, atol=1e-4)
    assert (by[0] - clean.hidden).norm() > 0.01 * clean.hidden.norm()
    same = found["resid_mid"]
    assert torch.equal(clean.replay(same, clean.activations[same]), clean.hidden)


def test_parallel_attention_and_mlp_have_no_middle_but_add_both():
    model = tiny_gpt_neox()
    with pytest.raises(UserError, match="there is no resid_mid"):
        find_site(model, "resid_mid", LAYER)
    clean, found = pass_of(model, "gpt_neox", "resid_pre", "attn_add", "mlp_out", "resid_post")
    pre, attn, mlp, post = (clean.activations[site] for site in found.values())
    torch.testing.assert_close(post, pre + attn + mlp)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "resid_mid"])
def test_a_module_knows_its_short_name(kind):
    model = tiny_llama()
    site = find_site(model, kind, LAYER)
    assert kind_of(model, site.path, site.side) == kind
    assert kind_of(model, "model.layers.2.mlp.up_proj", "output") is None
    assert kind_of(model, "model.norm", "output") is None


def test_a_centred_site_gives_activations_less_their_mean_and_has_a_name_of_its_own():
    clean, found = pass_of(FAMILIES["gpt2"](), "gpt2", "resid_post")
    (site,) = found.values()
    centred = replace(site, centred=True)
    assert (centred.name, site.name) == ("layer_2.resid_post.centred", "layer_2.resid_post")
    x = clean.activations[site]
    expected = x - x.mean(-1, keepdim=True)
    assert torch.equal(clean.lm.clean_pass(TOKENS, [centred]).activations[centred], expected)
    assert torch.equal(clean.lm.capture(TOKENS, [centred])[centred], expected)
    assert clean.lm._replayable[centred]
