"""In every family each site is what its definition says, seen by arithmetic, and the layers after it are replayed."""

from itertools import product

import pytest
import torch
import transformers as hf
from tiny import D_MODEL, FAMILIES, N_LAYERS, tiny_gpt_neox, tiny_llama, tiny_tokenizer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_bench.errors import UserError
from sae_bench.lm import families
from sae_bench.lm.families import find_family
from sae_bench.lm.hooks import intercept, run_until_seen
from sae_bench.lm.layers import find_backbone
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import KINDS, SITE_KINDS, find_site
from sae_bench.lm.skeleton import build_skeleton
from sae_bench.runs.config import RunConfig
from sae_bench.runs.plan import plan_saes

TOKENS = torch.arange(30).reshape(2, 15) + 5
WORDS = {"vocab_size": len(tiny_tokenizer()), "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
SIZES = WORDS | {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "max_position_embeddings": 128}
HEADS = {"num_attention_heads": 2, "initializer_range": 0.2}
LLAMA = SIZES | HEADS | {"intermediate_size": 56, "num_key_value_heads": 1, "head_dim": 24}
EXPERTS = {"num_experts_per_tok": 1, "pad_token_id": 0}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2}

CONFIGS = {  # name: (configuration, modules of mlp_out and of attn_out within layer 2)
    "glm4": (lambda: hf.Glm4Config(**LLAMA), "post_mlp_layernorm", "self_attn.o_proj"),
    "olmo2": (lambda: hf.Olmo2Config(**LLAMA), "post_feedforward_layernorm", "self_attn.o_proj"),
    "gemma3_multimodal": (
        lambda: hf.Gemma3Config(text_config=LLAMA | {"sliding_window": 4}, vision_config=VISION, image_token_id=9),
        "post_feedforward_layernorm",
        "self_attn.o_proj",
    ),
    "qwen3_next": (
        lambda: hf.Qwen3NextConfig(
            **LLAMA,
            **{"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8},
            **{"linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
            layer_types=["full_attention", "linear_attention", "linear_attention", "full_attention"],
        ),
        "mlp",
        "linear_attn.out_proj",
    ),
    "llama4": (
        lambda: hf.Llama4TextConfig(
            **LLAMA, intermediate_size_mlp=56, num_local_experts=2, num_experts_per_tok=1, moe_layers=[2, 3]
        ),
        "feed_forward",
        "self_attn.o_proj",
    ),
    "phi": (lambda: hf.PhiConfig(**SIZES, **HEADS, intermediate_size=56), "mlp", "self_attn.dense"),
    "opt": (
        lambda: hf.OPTConfig(**SIZES, num_attention_heads=2, ffn_dim=56, init_std=0.2, word_embed_proj_dim=D_MODEL),
        "fc2",
        "self_attn.out_proj",
    ),
    "gptj": (
        lambda: hf.GPTJConfig(**WORDS, n_positions=128, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=2, rotary_dim=8),
        "mlp",
        "attn.out_proj",
    ),
    "falcon": (
        lambda: hf.FalconConfig(**SIZES, **HEADS, multi_query=True, parallel_attn=True),
        "mlp.dense_4h_to_h",
        "self_attention.dense",
    ),
    "falcon_serial": (
        lambda: hf.FalconConfig(**SIZES, **HEADS, alibi=True, multi_query=False, parallel_attn=False),
        "mlp.dense_4h_to_h",
        "self_attention.dense",
    ),
    "bloom": (
        lambda: hf.BloomConfig(**WORDS, hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=2, initializer_range=0.2),
        "mlp.dense_4h_to_h",
        "self_attention.dense",
    ),
}


def built(config):
    """A random model whose norms and biases are random, too: one that is left out shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight += 0.3 * torch.randn_like(weight)
    return model.eval()


MODELS = {name: lambda config=config: built(config()) for name, (config, *_) in CONFIGS.items()} | FAMILIES


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@torch.no_grad()
def seen(model, points):
    return run_until_seen(model, TOKENS, points)


def point(model, site):
    return model.get_submodule(site.path), site.side


@pytest.mark.parametrize("name", CONFIGS)
def test_the_modules_of_a_family(name):
    model, (_, mlp_out, attn_out) = MODELS[name](), CONFIGS[name]
    block = find_site(model, "resid_post", 2).path
    assert find_site(model, "mlp_out", 2).path == f"{block}.{mlp_out}"
    assert find_site(model, "attn_out", 2).path == f"{block}.{attn_out}"
    with FakeTensorMode():  # a dry run names the same ones
        planned = build_skeleton(CONFIGS[name][0]())
        paths = [find_site(planned, kind, 2).path for kind in SITE_KINDS]
    assert paths == [block, f"{block}.{mlp_out}", f"{block}.{attn_out}"]


def test_every_layer_of_every_model_has_all_named_sites_and_resid_post_is_the_models_own(model):
    with torch.no_grad():
        hidden_states = model(TOKENS, output_hidden_states=True).hidden_states
    sites = [[find_site(model, kind, layer) for kind in SITE_KINDS] for layer in range(N_LAYERS)]
    found = seen(model, {i: point(model, of[0]) for i, of in enumerate(sites)})
    for layer in range(N_LAYERS - 1):  # the last of the model's list has gone through the final norm
        assert torch.equal(found[layer], hidden_states[layer + 1])


def test_without_its_mlp_and_attention_a_layer_passes_the_residual_on(model):
    """Not how the sites are found: the MLP's site and attention's at zero leave nothing of a layer but biases."""
    block = model.get_submodule(find_site(model, "resid_post", 2).path)
    mlp, attn = (find_site(model, kind, 2) for kind in ("mlp_out", "attn_out"))
    plain = seen(model, {"pre": (block, "input"), "post": (block, "output")})
    with intercept(*point(model, mlp), torch.zeros_like):
        without_mlp = seen(model, {"post": (block, "output")})
        with intercept(*point(model, attn), torch.zeros_like):
            without = seen(model, {"post": (block, "output")})
    assert not torch.allclose(without_mlp["post"], plain["post"], atol=1e-2)
    gained = without["post"] - plain["pre"]
    torch.testing.assert_close(gained, gained[:1, :1].expand_as(gained), atol=1e-5, rtol=1e-4)


def test_replays_are_exact_and_those_of_changed_activations_are_a_pass_with_them_replaced(model, caplog):
    lm = LanguageModel(model, tiny_tokenizer(), "tiny")
    sites = [find_site(model, kind, layer) for layer in (0, 2, 3) for kind in SITE_KINDS]
    clean = lm.clean_pass(TOKENS, sites)
    assert caplog.records == []
    assert all(lm._replayable.values())
    alone = {site: lm.capture(TOKENS, [site])[site].clone() for site in sites}
    for site in sites:
        assert torch.equal(clean.activations[site], alone[site]), site.name
        assert clean.activations[site].shape == (2, 15, site.d_in)
        x_new = alone[site] * 0.5 + 1
        kept = x_new.clone()
        hidden = clean.replay(site, x_new)
        assert torch.equal(x_new, kept), "a model may write over what it is given, not over ours"
        with intercept(*point(model, site), lambda x, new=x_new: new.reshape(x.shape).clone()), torch.no_grad():
            logits = model(TOKENS).logits
        assert torch.equal(lm.logits(hidden), logits), site.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_in_a_coarse_dtype_is_no_mismatch(model, dtype):
    model.to(dtype)
    for kind in SITE_KINDS:
        find_site(model, kind, 2)


def without_entries(monkeypatch, *names):
    monkeypatch.setattr(families, "FAMILIES", [f for f in families.FAMILIES if f.mlp_out not in names])


@pytest.mark.parametrize(("name", "norm"), [("glm4", "post_mlp_layernorm"), ("olmo2", "post_feedforward_layernorm")])
def test_a_norm_that_no_entry_knows_of_is_found_by_arithmetic(monkeypatch, name, norm):
    """With Llama's entry alone, by whose names the MLP itself would be read."""
    without_entries(monkeypatch, norm)
    model = MODELS[name]()
    assert find_family(model, 2).mlp_out == "mlp"
    assert find_site(model, "mlp_out", 2).path == f"model.layers.2.{norm}"
    model.to(torch.bfloat16)
    assert find_site(model, "mlp_out", 2).path == f"model.layers.2.{norm}"


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
    post_norm = built(hf.OPTConfig(**SIZES, num_attention_heads=2, ffn_dim=56, do_layer_norm_before=False))
    with pytest.raises(UserError, match="fc1"):
        find_site(post_norm, "mlp_out", 1)
    assert find_site(post_norm, "resid_post", 1).d_in == D_MODEL


def test_a_model_of_no_family_has_the_output_of_every_layer_and_says_which_modules_there_are(caplog):
    config = hf.MambaConfig(**WORDS, hidden_size=D_MODEL, num_hidden_layers=N_LAYERS, state_size=4)
    mamba = built(config)
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
    mamba = built(hf.MambaConfig(**WORDS, hidden_size=D_MODEL, num_hidden_layers=N_LAYERS, state_size=4))
    settings = {"archs": (), "saes": ({"source": "a", "sha256": "0"},), "sites": ("mlp_out",), "dataset": "d"}
    assert plan_saes(RunConfig.build(settings), LanguageModel(mamba, tiny_tokenizer(), "mamba")) == []


def test_a_list_of_experts_or_of_vision_layers_is_not_taken_for_the_layers():
    assert find_backbone(MODELS["gemma3_multimodal"]()).layers_path == "model.language_model.layers"
    model = tiny_gpt_neox()
    model.gpt_neox.layers[0].mlp.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(N_LAYERS))
    model.gpt_neox.final_layer_norm, model.gpt_neox.norm = None, model.gpt_neox.final_layer_norm
    assert find_backbone(model).layers_path == "gpt_neox.layers"


def test_a_model_without_layers_names_its_lists_of_modules(monkeypatch):
    model = tiny_llama()
    model.config.num_hidden_layers = 7
    monkeypatch.setattr(families, "FAMILIES", [])
    with pytest.raises(UserError, match=r"lists of modules here: model\.layers\.\{layer\}$"):
        find_site(model, "resid_post", 1)


@pytest.mark.parametrize("name", MODELS)
def test_a_dry_run_names_the_very_modules_that_a_run_finds_and_refuses_a_middle_that_is_none(name):
    """A norm behind attention (Gemma, GLM-4, OLMo 2) is seen without values; so is attention beside the MLP."""
    model, mode = MODELS[name](), FakeTensorMode()
    with mode:
        planned = build_skeleton(model.config).eval()

    def place(model, kind, layer):
        try:
            return find_site(model, kind, layer)
        except UserError as error:
            return str(error)

    for kind, layer in product(KINDS, (0, 2)):
        with mode:
            without_values = place(planned, kind, layer)
        assert without_values == place(model, kind, layer)
    assert not isinstance(place(model, "attn_add", 2), str)
    parallel = ("phi", "gptj", "falcon", "gpt_neox")
    assert isinstance(place(model, "resid_mid", 2), str) == (name in parallel)
