"""SAEs as their publishers have them: what is in a name, which scale a threshold is on, and what is no autoencoder."""

import json

import pytest
import torch
from foreign_files import (
    D,
    F,
    K,
    linear,
    numbers,
    parts,
    write_gemma_scope_2,
    write_goodfire,
    write_llama_scope,
    write_llamascopium,
    write_qwen_scope,
    write_saelens,
)
from safetensors.torch import load_file, save_file
from test_formats import opened
from test_sources import FakeHub

from sae_bench.errors import UserError
from sae_bench.formats.hook_names import Place
from sae_bench.formats.open import find_sources, open_sae

POINT = "model.layers.17.output"
GEMMA_SCOPE_2 = {
    "hf_hook_point_in": POINT, "hf_hook_point_out": POINT, "width": F, "model_name": "google/gemma-3-4b-pt",
    "architecture": "jump_relu", "l0": 60, "affine_connection": False, "type": "sae",
}  # fmt: skip
"""Every setting of a configuration as it is published."""


def test_gemma_scope_2s_own_configuration_is_of_an_sae_that_writes_what_it_reads(tmp_path):
    folder, encode = write_gemma_scope_2(tmp_path, GEMMA_SCOPE_2)
    foreign = opened(folder)
    assert (foreign.place.kind, foreign.place.model, foreign.notes) == (
        "path:model.layers.17", "google/gemma-3-4b-pt", ()
    )  # fmt: skip
    x = numbers(20, D, seed=9)
    torch.testing.assert_close(foreign.build().encode(x).to_dense(), encode(x), rtol=1e-4, atol=1e-4)


TRANSCODERS = {
    "another module": ({"hf_hook_point_out": "model.layers.17.post_feedforward_layernorm.output"}, {}, "transcoder"),
    "its type": ({"type": "transcoder"}, {}, "transcoder"),
    "several layers": ({"type": "clt"}, {}, "clt"),
    "crosscoder": ({"type": "crosscoder"}, {}, "crosscoder"),
    "a skip connection": ({}, {"affine_skip_connection": numbers(D, D)}, "transcoder"),
}


@pytest.mark.parametrize("how", TRANSCODERS)
def test_gemma_scope_2s_transcoders_are_refused_by_what_gives_them_away(tmp_path, how):
    settings, tensors, name = TRANSCODERS[how]
    folder, _ = write_gemma_scope_2(tmp_path, GEMMA_SCOPE_2 | settings, **tensors)
    with pytest.raises(
        UserError, match=f"{name}, which predicts other activations than it reads: it is no autoencoder"
    ):
        opened(folder)


def test_qwen_scope_says_layer_k_and_model_in_names_alone(tmp_path):
    folder, _ = write_qwen_scope(tmp_path)
    foreign = opened(folder / "layer1.sae.pt")
    assert (foreign.k, foreign.place) == (K, Place("resid_post", 1, "Qwen/Qwen3-8B-Base"))
    (folder / "layer12.sae.pt").write_bytes((folder / "layer1.sae.pt").read_bytes())
    assert [open_sae(source).place.layer for source in find_sources(str(folder))] == [1, 12]
    elsewhere, _ = write_qwen_scope(tmp_path, "downloads")
    with pytest.raises(UserError, match=r"said by the repository's name alone, .*: call the file's folder that"):
        opened(elsewhere)
    wide, _ = write_qwen_scope(tmp_path, "SAE-Res-Qwen3-8B-Base-W64K-L0_100")
    with pytest.raises(UserError, match=f"the L0 in its path is 100: it must be a whole number from 1 to {F}"):
        opened(wide)


def test_one_file_of_a_repository_is_fetched_by_its_name(tmp_path, monkeypatch):
    write_qwen_scope(tmp_path, "repo")
    hub = FakeHub(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    text = f"hf:Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}@main/layer1.sae.pt"
    (source,) = find_sources(text)
    assert (source.name, open_sae(source).k) == (text, K)
    assert hub.asked == [(f"Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}", "main")]
    with pytest.raises(UserError, match="has no SAE"):
        find_sources(text.replace("layer1", "layer2"))


def test_goodfire_says_layer_and_model_in_the_files_name(tmp_path):
    folder, _ = write_goodfire(tmp_path, "Llama-3.3-70B-Instruct-SAE-l50.pt")
    assert opened(folder).place == Place("resid_post", 50, "Llama-3.3-70B-Instruct")


def test_a_batchtopk_without_a_threshold_is_refused(tmp_path):
    w = parts()
    path = tmp_path / "DeepSeek-R1-SAE-l37.pt"
    torch.save({"W": w["W_enc"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}, path)
    with pytest.raises(UserError, match="a BatchTopK that was saved without a threshold"):
        opened(path)
    folder, _ = write_saelens(tmp_path / "s", "batchtopk")
    weights = folder / "sae_weights.safetensors"
    save_file(load_file(weights) | {"topk_threshold": torch.tensor(0.0, dtype=torch.float64)}, weights)
    with pytest.raises(UserError, match="topk_threshold was never set, so what it selects depends on the batch"):
        opened(folder).build()


def test_llama_scopes_threshold_is_on_raw_activations_by_hand(tmp_path):
    """c = sqrt(4) / 4 = 1/2. Folded by hand: z = (x + 2) * 2 = 8 and 6 of x = 2 and 1; 7 between them is not scaled."""
    folder, _ = write_llama_scope(
        tmp_path, d_model=4, jump_relu_threshold=7.0, dataset_average_activation_norm={"in": 4.0, "out": 4.0}
    )
    eye = torch.eye(4)
    w = {"W_enc": eye, "b_enc": torch.ones(4), "W_dec": 2 * eye, "b_dec": torch.full((4,), 3.0)}
    save_file(linear(w), folder / "checkpoints" / "final.safetensors")
    sae = opened(folder).build()
    assert sae.encode(torch.tensor([[2.0, 1.0, 0.0, 0.0]])).to_dense().tolist() == [[8, 0, 0, 0]]
    assert sae(torch.zeros(1, 4)).tolist() == [[6, 6, 6, 6]], "b_dec / c"


def test_an_encoder_that_subtracts_the_decoders_bias_is_read(tmp_path):
    folder, encode = write_llama_scope(tmp_path, apply_decoder_bias_to_pre_encoder=True)
    x = 3 * numbers(200, D, seed=9)
    torch.testing.assert_close(opened(folder).build().encode(x).to_dense(), encode(x), rtol=1e-4, atol=1e-4)
    folder, _ = write_llama_scope(tmp_path / "b", use_decoder_bias=False)
    assert not opened(folder).build().b_dec.any()


def test_a_topk_with_a_threshold_is_a_jumprelu(tmp_path):
    folder, _ = write_llama_scope(tmp_path, act_fn="topk")
    assert opened(folder).arch == "jumprelu"


def test_lm_saes_before_version_2_are_read_by_their_names(tmp_path):
    folder, encode = write_llamascopium(tmp_path)
    path = folder / "sae_weights.safetensors"
    found = load_file(path)
    older = linear(parts()) | {"log_jumprelu_threshold": found["activation_function.log_jumprelu_threshold"]}
    save_file(older | {name: value for name, value in found.items() if name.startswith("dataset")}, path)
    x = 3 * numbers(200, D, seed=9)
    torch.testing.assert_close(opened(folder).build().encode(x).to_dense(), encode(x), rtol=1e-4, atol=1e-4)


OUT = {"hook_point_out": "blocks.1.hook_mlp_out"}
REFUSED = {
    "Llama Scope's transcoder": (write_llama_scope, OUT, "a transcoder, no autoencoder"),
    "llamascopium's transcoder": (write_llamascopium, OUT, "a transcoder, no autoencoder"),
    **{f"llamascopium's {kind}": (write_llamascopium, {"sae_type": kind}, f"sae_type is '{kind}': .* no autoencoder")
       for kind in ("crosscoder", "clt", "lorsa", "molt")},
    "a gated encoder": (write_llamascopium, {"use_glu_encoder": True}, "a sigmoid gates its latents"),
    "norms per token": (write_llamascopium, {"norm_activation": "token-wise"}, "is not part of the weights"),
    "Llama Scope's norms per batch": (write_llama_scope, {"norm_activation": "batch-wise"}, "not part of the weights"),
    "no mean norm": (write_llama_scope, {"dataset_average_activation_norm": None}, "it must be a number above zero"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_autoencoder_or_not_in_the_weights_is_refused(tmp_path, what):
    write, settings, why = REFUSED[what]
    folder, _ = write(tmp_path, **settings)
    with pytest.raises(UserError, match=why):
        opened(folder)


def test_a_rule_for_whole_batches_is_refused(tmp_path):
    folder, _ = write_llamascopium(tmp_path, "topk")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"act_fn": "batchtopk"}))
    with pytest.raises(UserError, match="act_fn 'batchtopk' is none of relu, topk, jumprelu"):
        opened(folder)


# --- SAELens's ------------------------------------------------------------------------------------------------------


def test_abs_topk_keeps_signs(tmp_path):
    folder, _ = write_saelens(tmp_path / "s", "abstopk", k=K)
    sae, w, x = opened(folder).build(), parts(), 3 * numbers(200, D, seed=9)
    z = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    kept = z.abs().topk(K, dim=1).indices
    f = torch.zeros_like(z).scatter(1, kept, z.gather(1, kept))
    assert (sae.name, bool((f < 0).any())) == ("abs_topk", True)
    torch.testing.assert_close(sae.encode(x).to_dense(), f, rtol=1e-4, atol=1e-4)


def test_matching_pursuit_stops_where_saelens_stops_it(tmp_path):
    """Rows e1 and e2, x = (3, 1): 3 e1 is taken, then 1 e2, unless less than 1.5 is left; then no more is to be had."""
    folder, _ = write_saelens(tmp_path / "s", "matching_pursuit", k=None)
    save_file({"W_dec": torch.eye(2), "b_dec": torch.zeros(2)}, folder / "sae_weights.safetensors")
    x, config = torch.tensor([[3.0, 1.0]]), json.loads((folder / "cfg.json").read_text())
    cases = (({}, [3, 1]), ({"residual_threshold": 1.5}, [3, 0]), ({"max_iterations": 1}, [3, 0]))
    for settings, f in cases:
        (folder / "cfg.json").write_text(json.dumps(config | settings))
        sae = opened(folder).build()
        assert (sae.name, sae.encode(x).to_dense().tolist()) == ("matching_pursuit", [f]), settings
    assert sae.config.options == {"residual_threshold": 0.01, "stop_on_duplicate_support": True}
    for settings, why in (
        ({"apply_b_dec_to_input": False}, "without b_dec"),
        ({"max_iterations": 0}, "max_iterations is 0"),
        ({"residual_threshold": -1}, "residual_threshold is -1: it must be a number above zero"),
    ):
        (folder / "cfg.json").write_text(json.dumps(config | settings))
        with pytest.raises(UserError, match=why):
            opened(folder)
