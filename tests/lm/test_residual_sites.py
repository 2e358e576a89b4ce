"""A module knows the name of its site, and a site may be centred."""

from dataclasses import replace

import pytest
import torch
from tiny import FAMILIES, tiny_llama, tiny_tokenizer

from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import KINDS, find_site, kind_of

TOKENS = torch.arange(30).reshape(2, 15) + 5


LAYER = 2


def pass_of(model, family, *kinds):
    lm = LanguageModel(model, tiny_tokenizer(family), family)
    found = {kind: find_site(model, kind, LAYER) for kind in kinds}
    return lm.clean_pass(TOKENS, found.values()), found


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
