"""SAEs as other tools write them, each naming its place as its tool does (docs/formats.md has the table)."""

import json

import torch
from safetensors.torch import save_file

RANK = 8


def principal(x):
    """The SAE f = relu(+-(x - mean) v_i) of the first principal components, by the names of the papers."""
    mean = x.mean(0)
    v = torch.linalg.svd(x - mean, full_matrices=False).Vh[:RANK]
    rows = torch.cat([v, -v])
    return {"W_enc": rows.T.contiguous(), "b_enc": torch.zeros(len(rows)), "W_dec": rows, "b_dec": mean}


def saelens(folder, w, **settings):
    folder.mkdir(parents=True)
    save_file(w, folder / "sae_weights.safetensors")
    about = {"architecture": "standard", "d_in": len(w["W_enc"]), "d_sae": len(w["W_dec"])}
    (folder / "cfg.json").write_text(json.dumps(about | settings))
    return folder


def dictionary_learning(folder, w, trainer, io="out"):
    folder.mkdir(parents=True)
    state = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"],
             "decoder.weight": w["W_dec"].T.contiguous(), "bias": w["b_dec"]}  # fmt: skip
    torch.save(state, folder / "ae.pt")
    about = {"trainer": {"dict_class": "AutoEncoder"} | trainer, "buffer": {"io": io}}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def sparsify(folder, w):
    folder.mkdir(parents=True)
    tensors = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"]}
    save_file(tensors | {"W_dec": w["W_dec"], "b_dec": w["b_dec"]}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": len(w["W_enc"]), "k": 2 * RANK, "num_latents": 2 * RANK}))
    return folder


def gemma_scope_2(folder, w, **settings):
    folder.mkdir(parents=True)
    theirs = {name.replace("W_", "w_"): value for name, value in w.items()}
    save_file(theirs | {"threshold": torch.zeros(2 * RANK)}, folder / "params.safetensors")
    if settings:
        (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu"} | settings))
    return folder


def lens(hook):
    return lambda t, w: saelens(t / "s", w, hook_name=hook)


def dl(name, layer=1, io="out"):
    return lambda t, w: dictionary_learning(t / "trainer_0", w, {"submodule_name": name, "layer": layer}, io)


def dl_path(*parts):
    return lambda t, w: dictionary_learning(t.joinpath(*parts), w, {"layer": 1})


def sp(*parts):
    return lambda t, w: sparsify(t.joinpath(*parts), w)


def gs2(part, **settings):
    return lambda t, w: gemma_scope_2(t / "g" / part / "layer_1_width_16_l0_small", w, **settings)


SPELLINGS = {  # what the tool writes: the model, its module and side, and the name of the site
    "SAELens hook_resid_post": (
        lens("blocks.1.hook_resid_post"),
        "gpt2",
        "transformer.h.1",
        "output",
        "layer_1.resid_post",
    ),
    "SAELens hook_resid_pre": (
        lens("blocks.1.hook_resid_pre"),
        "gpt2",
        "transformer.h.1",
        "input",
        "layer_0.resid_post",
    ),
    "SAELens hook_resid_pre 0": (
        lens("blocks.0.hook_resid_pre"),
        "gpt2",
        "transformer.h.0",
        "input",
        "layer_0.resid_pre",
    ),
    "SAELens hook_resid_mid": (
        lens("blocks.1.hook_resid_mid"),
        "gpt2",
        "transformer.h.1.ln_2",
        "input",
        "layer_1.resid_mid",
    ),
    "SAELens hook_mlp_out": (lens("blocks.1.hook_mlp_out"), "gpt2", "transformer.h.1.mlp", "output", "layer_1.mlp_out"),
    "SAELens hook_attn_out": (
        lens("blocks.1.hook_attn_out"),
        "gpt2",
        "transformer.h.1.attn",
        "output",
        "layer_1.attn_add",
    ),
    "SAELens hook_attn_out, Gemma 2": (
        lens("blocks.1.hook_attn_out"),
        "gemma2",
        "model.layers.1.post_attention_layernorm",
        "output",
        "layer_1.attn_add",
    ),
    "SAELens hook_z": (
        lens("blocks.1.attn.hook_z"),
        "gemma2",
        "model.layers.1.self_attn.o_proj",
        "input",
        "layer_1.attn_out",
    ),
    "SAELens module": (lens("model.layers.1"), "llama", "model.layers.1", "output", "layer_1.resid_post"),
    "SAELens module below": (
        lens("model.layers.1.mlp"),
        "gemma2",
        "model.layers.1.mlp",
        "output",
        "path.model.layers.1.mlp",
    ),
    "dl resid_post_layer_1": (dl("resid_post_layer_1"), "neox", "gpt_neox.layers.1", "output", "layer_1.resid_post"),
    "dl attention_out_layer_1": (
        dl("attention_out_layer_1"),
        "neox",
        "gpt_neox.layers.1.attention",
        "output",
        "layer_1.attn_add",
    ),
    "dl mlp_out_layer_1": (dl("mlp_out_layer_1"), "neox", "gpt_neox.layers.1.mlp", "output", "layer_1.mlp_out"),
    "dl module": (
        dl("gpt_neox.layers.1.attention"),
        "neox",
        "gpt_neox.layers.1.attention",
        "output",
        "layer_1.attn_add",
    ),
    "dl module in": (
        dl("gpt_neox.layers.1.mlp", io="in"),
        "neox",
        "gpt_neox.layers.1.mlp",
        "input",
        "path.gpt_neox.layers.1.mlp.input",
    ),
    "dl nnsight": (dl("model.gpt_neox.layers[1].mlp"), "neox", "gpt_neox.layers.1.mlp", "output", "layer_1.mlp_out"),
    "dl attn_out_layer1/": (
        dl_path("pythia-70m-deduped", "attn_out_layer1", "10_32768"),
        "neox",
        "gpt_neox.layers.1.attention",
        "output",
        "layer_1.attn_add",
    ),
    "dl mlp_out_layer1/": (
        dl_path("pythia-70m-deduped", "mlp_out_layer1", "10_32768"),
        "neox",
        "gpt_neox.layers.1.mlp",
        "output",
        "layer_1.mlp_out",
    ),
    "dl resid_out_layer1/": (
        dl_path("pythia-70m-deduped", "resid_out_layer1", "10_32768"),
        "neox",
        "gpt_neox.layers.1",
        "output",
        "layer_1.resid_post",
    ),
    "dl checkpoints/": (
        dl_path("resid_post_layer_1_checkpoints", "trainer_0_step_9"),
        "neox",
        "gpt_neox.layers.1",
        "output",
        "layer_1.resid_post",
    ),
    "sparsify layers.1": (sp("layers.1"), "neox", "gpt_neox.layers.1", "output", "layer_1.resid_post"),
    "sparsify layers.1.mlp": (sp("layers.1.mlp"), "neox", "gpt_neox.layers.1.mlp", "output", "layer_1.mlp_out"),
    "sparsify layers.1.mlp, Gemma 2": (
        sp("layers.1.mlp"),
        "gemma2",
        "model.layers.1.mlp",
        "output",
        "path.model.layers.1.mlp",
    ),
    "sparsify layers.1.attention": (
        sp("layers.1.attention"),
        "neox",
        "gpt_neox.layers.1.attention",
        "output",
        "layer_1.attn_add",
    ),
    "sparsify o_proj": (
        sp("layers.1.self_attn.o_proj"),
        "llama",
        "model.layers.1.self_attn.o_proj",
        "output",
        "layer_1.attn_add",
    ),
    "sparsify h.1.mlp": (sp("h.1.mlp"), "gpt2", "transformer.h.1.mlp", "output", "layer_1.mlp_out"),
    "sparsify a folder a seed": (
        sp("layers.1.mlp", "seed2"),
        "neox",
        "gpt_neox.layers.1.mlp",
        "output",
        "layer_1.mlp_out",
    ),
    "Gemma Scope 2 resid_post": (gs2("resid_post_all"), "gemma2", "model.layers.1", "output", "layer_1.resid_post"),
    "Gemma Scope 2 attn_out": (
        gs2("attn_out", hf_hook_point_in="model.layers.1.self_attn.o_proj.input"),
        "gemma2",
        "model.layers.1.self_attn.o_proj",
        "input",
        "layer_1.attn_out",
    ),
    "Gemma Scope 2 mlp_out": (
        gs2("x", hf_hook_point_in="model.layers.1.post_feedforward_layernorm.output"),
        "gemma2",
        "model.layers.1.post_feedforward_layernorm",
        "output",
        "layer_1.mlp_out",
    ),
}
