"""Where a model's layers stand and what they add, in models of no family too; what is said where nothing is found."""

from pathlib import Path

import pytest
import torch
from tiny import D_MODEL, tiny_gpt_neox, tiny_llama, tiny_tokenizer
from tiny_families import N_LAYERS, SIZES, TINY, built, mamba_config
from torch import nn
from transformers import OPTConfig

from sae_bench.errors import UserError
from sae_bench.lm import families
from sae_bench.lm.families import find_family
from sae_bench.lm.layers import find_backbone
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import find_site
from sae_bench.runs.config import RunConfig
from sae_bench.runs.plan import plan_saes

TOKENS = torch.arange(30).reshape(2, 15) + 5


def without_entries(monkeypatch, *names):
    monkeypatch.setattr(families, "FAMILIES", [f for f in families.FAMILIES if f.mlp_out not in names])


@pytest.mark.parametrize(("name", "norm"), [("glm4", "post_mlp_layernorm"), ("olmo2", "post_feedforward_layernorm")])
def test_a_norm_that_no_entry_knows_of_is_found_by_arithmetic(monkeypatch, name, norm):
    """With Llama's entry alone, by whose names the MLP itself would be read."""
    without_entries(monkeypatch, norm)
    model = built(TINY[name].config())
    assert find_family(model, 1).mlp_out == "mlp"
    assert find_site(model, "mlp_out", 1).path == f"model.layers.1.{norm}"
    model.to(torch.bfloat16)
    assert find_site(model, "mlp_out", 1).path == f"model.layers.1.{norm}"


class _Halved(nn.Module):
    """A layer that adds half of what its MLP returns, as no module of it does."""

    def __init__(self, layer):
        super().__init__()
        self.self_attn, self.mlp, self.norms = layer.self_attn, layer.mlp, nn.ModuleList(layer.children())[2:]

    def forward(self, hidden, **kwargs):
        hidden = hidden + self.self_attn(hidden_states=self.norms[0](hidden), **kwargs)[0]
        return hidden + 0.5 * self.mlp(self.norms[1](hidden))


@pytest.mark.parametrize("kind", ["mlp_out", "attn_out"])
def test_a_layer_that_adds_something_else_is_refused_in_one_line_that_names_its_modules(kind):
    model = tiny_llama()
    model.model.layers[2] = _Halved(model.model.layers[2])
    find_site(model, kind, 1)
    with pytest.raises(UserError, match=r"what model\.layers\.2 adds to the residual stream is not what") as error:
        find_site(model, kind, 2)
    assert str(error.value).endswith("--site path:model.layers.{layer}.MODULE; MODULE is in self_attn, mlp, "
                                     "input_layernorm, post_attention_layernorm, norms")  # fmt: skip
    assert "\n" not in str(error.value)
    assert find_site(model, "resid_post", 2).path == "model.layers.2"
    assert find_site(model, "path:model.layers.{layer}.mlp", 2).path == "model.layers.2.mlp"


def test_a_residual_that_is_normed_after_the_sum_has_no_mlp_out():
    """OPT-350m: a layer returns norm(resid_mid + mlp)."""
    post_norm = built(OPTConfig(**SIZES, num_attention_heads=2, ffn_dim=56, do_layer_norm_before=False))
    with pytest.raises(UserError, match="fc1"):
        find_site(post_norm, "mlp_out", 1)
    assert find_site(post_norm, "resid_post", 1).d_in == D_MODEL


def test_a_model_of_no_family_has_the_output_of_every_layer_and_says_which_modules_there_are(caplog):
    mamba = built(mamba_config())
    assert [find_site(mamba, "resid_post", layer).path for layer in range(N_LAYERS)] == [
        f"backbone.layers.{layer}" for layer in range(N_LAYERS)
    ]
    with pytest.raises(UserError, match=r"path:backbone\.layers\.\{layer\}\.MODULE; MODULE is in norm, mixer$"):
        find_site(mamba, "mlp_out", 1)
    lm = LanguageModel(mamba, tiny_tokenizer(), "mamba")
    site = find_site(mamba, "path:backbone.layers.{layer}.mixer", 1)
    clean = lm.clean_pass(TOKENS, [site, find_site(mamba, "resid_post", 1)])
    assert not [r for r in caplog.records if r.name.startswith("sae_bench")], (
        "the norm beside the layers is the one before the LM head: replays are exact"
    )
    assert torch.equal(clean.replay(site, clean.activations[site]), clean.hidden)


def test_a_run_that_trains_nothing_looks_for_no_site_of_its_own():
    """Mamba has none for `--site mlp_out`, and the SAEs that are evaluated say another."""
    mamba = built(mamba_config())
    settings = {"archs": (), "saes": ({"source": "a", "sha256": "0"},), "sites": ("mlp_out",), "dataset": "d"}
    assert plan_saes(RunConfig.build(settings), LanguageModel(mamba, tiny_tokenizer(), "mamba")) == []


def test_a_list_of_experts_or_of_vision_layers_is_not_taken_for_the_layers():
    assert find_backbone(built(TINY["gemma3_multimodal"].config())).layers_path == "model.language_model.layers"
    model = tiny_gpt_neox()
    model.gpt_neox.layers[0].mlp.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    model.gpt_neox.final_layer_norm, model.gpt_neox.norm = None, model.gpt_neox.final_layer_norm
    assert find_backbone(model).layers_path == "gpt_neox.layers"


def test_a_model_without_layers_names_its_lists_of_modules(monkeypatch):
    model = tiny_llama()
    model.config.num_hidden_layers = 7
    monkeypatch.setattr(families, "FAMILIES", [])
    with pytest.raises(UserError, match=r"looks like layers here: model\.layers\.\{layer\} \(4 LlamaDecoderLayer\)$"):
        find_site(model, "resid_post", 1)


def test_the_page_on_models_has_every_module_of_every_family():
    page = (Path(__file__).parents[2] / "docs" / "add-a-model.md").read_text()
    named = {name for family in families.FAMILIES for name in (family.mlp_out, family.attn_out)}
    assert {name for name in named if f"`{name}`" not in page} == set()
