"""Each site is the module that Gemma Scope's definition means, in every family, shown by arithmetic on its values."""

import pytest
import torch
from tiny import (
    D_MODEL,
    FAMILIES,
    HEADS_WIDTH,
    N_LAYERS,
    tiny_gemma2,
    tiny_gpt_neox,
    tiny_llama,
    tiny_phi,
    tiny_tokenizer,
)
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from sae_bench.errors import UserError
from sae_bench.lm import families
from sae_bench.lm.hooks import run_until_seen
from sae_bench.lm.layers import find_backbone
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import SITE_KINDS, Site, find_site
from sae_bench.registry import load_plugin

TOKENS = torch.arange(30).reshape(2, 15) + 5

MODULES = {  # family: (the residual before the MLP is what enters this module, output projection of attention)
    "gemma2": ("pre_feedforward_layernorm", "self_attn.o_proj"),
    "gemma3": ("pre_feedforward_layernorm", "self_attn.o_proj"),
    "llama": ("post_attention_layernorm", "self_attn.o_proj"),
    "qwen3": ("post_attention_layernorm", "self_attn.o_proj"),
    "mistral": ("post_attention_layernorm", "self_attn.o_proj"),
    "gpt_neox": ("post_attention_layernorm", "attention.dense"),
    "gpt2": ("ln_2", "attn.c_proj"),
}


def read(model, **points):
    """Activations by name, of a Site or of a pair (module, side)."""
    modules = {
        name: (model.get_submodule(point.path), point.side) if isinstance(point, Site) else point
        for name, point in points.items()
    }
    with torch.no_grad():
        return run_until_seen(model, TOKENS, modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_what_their_definitions_say(family):
    model, layer = FAMILIES[family](), 2
    before_mlp, out_proj = MODULES[family]
    block = find_backbone(model).layers[layer]
    project = block.get_submodule(out_proj)
    seen = read(
        model,
        **{kind: find_site(model, kind, layer) for kind in SITE_KINDS},
        resid_pre=(block, "input"),
        resid_mid=(block.get_submodule(before_mlp), "input"),
        projected=(project, "output"),
    )
    # The model's own list of hidden states: entry i + 1 leaves layer i.
    with torch.no_grad():
        hidden_states = model(TOKENS, output_hidden_states=True).hidden_states
    assert torch.equal(seen["resid_post"], hidden_states[layer + 1])

    weight = project.weight if family == "gpt2" else project.weight.T
    bias = 0 if project.bias is None else project.bias
    torch.testing.assert_close(seen["attn_out"] @ weight + bias, seen["projected"])

    added = seen["projected"]
    if family.startswith("gemma"):
        added = block.post_attention_layernorm(added)
    if family == "gpt_neox":  # attention and MLP side by side: both read, and add to, the residual that enters
        torch.testing.assert_close(seen["resid_mid"], seen["resid_pre"])
        seen["resid_mid"] = seen["resid_pre"] + added
    torch.testing.assert_close(seen["resid_mid"], seen["resid_pre"] + added)
    torch.testing.assert_close(seen["resid_post"], seen["resid_mid"] + seen["mlp_out"])


def test_attn_out_is_the_heads_side_by_side():
    """Gemma 2's attention by hand: soft-capped scores, a causal window, heads concatenated."""
    model = tiny_gemma2(attn_logit_softcapping=0.5)
    attention = model.model.layers[0].self_attn  # layer 0 sees a window of 4 tokens
    seen = read(
        model,
        attn_out=find_site(model, "attn_out", 0),
        **{name: (getattr(attention, name), "output") for name in ("q_proj", "k_proj", "v_proj")},
    )
    n = TOKENS.shape[1]
    cos, sin = model.model.rotary_emb(seen["q_proj"], torch.arange(n)[None])

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    age = torch.arange(n)[:, None] - torch.arange(n)
    heads = []
    for q in seen["q_proj"].chunk(2, dim=-1):  # two heads share one key and one value
        scores = rotate(q) @ rotate(seen["k_proj"]).mT / 16**0.5
        scores = 0.5 * torch.tanh(scores / 0.5)
        scores = scores.masked_fill((age < 0) | (age >= 4), -torch.inf)
        heads.append(scores.softmax(dim=-1) @ seen["v_proj"])
    torch.testing.assert_close(seen["attn_out"], torch.cat(heads, dim=-1))


def test_serial_gpt_neox_adds_its_mlp_after_attention():
    model = tiny_gpt_neox(use_parallel_residual=False)
    block = model.gpt_neox.layers[1]
    seen = read(
        model,
        mid=(block.post_attention_layernorm, "input"),
        mlp_out=find_site(model, "mlp_out", 1),
        post=find_site(model, "resid_post", 1),
    )
    torch.testing.assert_close(seen["post"], seen["mid"] + seen["mlp_out"])


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_are_measured(family):
    model = FAMILIES[family]()
    widths = {kind: find_site(model, kind, 1).d_in for kind in SITE_KINDS}
    heads = D_MODEL if family.startswith("gpt") else HEADS_WIDTH
    assert widths == {"resid_post": D_MODEL, "mlp_out": D_MODEL, "attn_out": heads}


def test_gemma_reads_the_norm_after_its_mlp_and_llama_the_mlp():
    assert find_site(tiny_gemma2(), "mlp_out", 3).path == "model.layers.3.post_feedforward_layernorm"
    assert find_site(tiny_llama(), "mlp_out", 3).path == "model.layers.3.mlp"


def test_path_sites():
    model = tiny_llama()
    site = find_site(model, "path:model.layers.{layer}.mlp.down_proj@input", 1)
    assert site == Site(1, "path:model.layers.{layer}.mlp.down_proj@input", "model.layers.1.mlp.down_proj", "input", 56)
    assert site.name == "path.model.layers.1.mlp.down_proj.input"
    assert find_site(model, "path:model.layers.3.mlp.up_proj", 0).layer == 3  # the module's own number counts
    attention = find_site(model, "path:model.layers.1.self_attn@input", 1)  # its hidden states come by keyword
    normed = read(model, x=attention, y=(model.model.layers[1].input_layernorm, "output"))
    assert torch.equal(normed["x"], normed["y"])
    assert find_site(model, "path:model.layers.1.self_attn", 1).d_in == D_MODEL  # a module that returns a tuple
    assert find_site(model, "path:model.embed_tokens", 0).name == "path.model.embed_tokens"


def test_names_are_safe_for_folders():
    site = find_site(tiny_llama(), "resid_post", 2)
    assert site.name == "layer_2.resid_post"
    assert len({site, find_site(tiny_llama(), "resid_post", 2)}) == 1


def test_a_module_that_has_the_tokens_of_all_contexts_in_a_row_is_a_site():
    sizes = {"vocab_size": 64, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    opt = OPTForCausalLM(OPTConfig(**sizes)).eval()
    assert find_site(opt, "path:model.decoder.layers.{layer}.self_attn.out_proj@input", 1).d_in == 16
    site = find_site(opt, "path:model.decoder.layers.1.fc1", 1)  # (2, 24) for two tokens
    assert site.d_in == 24
    fc1 = opt.model.decoder.layers[1].fc1
    seen = read(opt, x=(fc1, "input"), y=site)
    assert seen["y"].shape == (*TOKENS.shape, 24)
    torch.testing.assert_close(seen["y"], fc1(seen["x"]))


def test_a_plugin_file_gives_a_new_family_its_sites(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(families, "FAMILIES", list(families.FAMILIES))
    model = tiny_phi()
    families.FAMILIES.clear()
    with pytest.raises(
        UserError, match=r"PhiForCausalLM: no known place for mlp_out in model\.layers\.1: .*self_attn, mlp"
    ):
        find_site(model, "mlp_out", 1)
    (tmp_path / "phi.py").write_text(
        "from sae_bench import Family, register_family\n"
        'register_family(Family("model.layers", "model.final_layernorm", "mlp", "self_attn.dense"))\n'
    )
    load_plugin(str(tmp_path / "phi.py"))
    found = {kind: find_site(model, kind, 1) for kind in SITE_KINDS}
    assert [site.name for site in found.values()] == [f"layer_1.{kind}" for kind in SITE_KINDS]
    with pytest.raises(UserError, match=r"layer 4: PhiForCausalLM has layers 0\.\.3"):
        find_site(model, "mlp_out", 4)
    at = read(model, before=find_site(model, "resid_post", 0), **found)
    attention = model.model.layers[1].self_attn.dense(at["attn_out"])
    torch.testing.assert_close(at["before"] + attention + at["mlp_out"], at["resid_post"])
    lm = LanguageModel(model, tiny_tokenizer(), "phi")
    lm.clean_pass(TOKENS, found.values())
    assert not caplog.records, "every replay is exact: the family's final norm is the one before the LM head"


def test_a_family_that_is_registered_refines_one_that_was_known(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", list(families.FAMILIES))
    families.register_family(families.Family("model.layers", "model.norm", "mlp.down_proj", "self_attn.o_proj"))
    assert find_site(tiny_llama(), "mlp_out", 3).path == "model.layers.3.mlp.down_proj"
    assert find_site(tiny_gpt_neox(), "mlp_out", 3).path == "gpt_neox.layers.3.mlp"


@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [
        ("resid_pst", 1, r'unknown site "resid_pst" \(did you mean "resid_post"\?'),
        ("resid_post", 30, r"layer 30: LlamaForCausalLM has layers 0\.\.3"),
        ("attn_out", -1, r"layer -1: LlamaForCausalLM has layers 0\.\.3"),
        ("path:model.layers.1.mlq", 1, r'model\.layers\.1 has no module "mlq" \(did you mean "mlp"\?'),
        ("path:mdel", 1, r'LlamaForCausalLM has no module "mdel" \(did you mean "model"\?'),
        ("path:model.layers.{layer}.mlp", 4, r'model\.layers has no module "4"'),
        ("path:model.layers.1.mlp@inputs", 1, r'after @ comes input or output, not "inputs"'),
        ("path:model.layers", 1, r"model\.layers takes no part in a forward pass"),
        ("path:model", 1, r"the output of LlamaModel is a BaseModelOutputWithPast, not a tensor"),
        ("path:model.embed_tokens@input", 1, r"the input of model\.embed_tokens has shape \(1, 2\) for two tokens"),
    ],
)
def test_mistakes_are_explained_in_one_line(kind, layer, message):
    with pytest.raises(UserError, match=message) as error:
        find_site(tiny_llama(), kind, layer)
    assert "\n" not in str(error.value)
    assert N_LAYERS == 4


def test_hooks_do_not_outlive_a_pass():
    model = tiny_llama()
    find_site(model, "attn_out", 1)
    with pytest.raises(UserError):
        find_site(model, "path:model", 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
