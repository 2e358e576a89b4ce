"""Foreign files become built-in SAEs that compute, on raw activations, what their authors compute."""

import json

import numpy as np
import pytest
import torch
from foreign_files import (
    MEAN_NORM,
    D,
    F,
    K,
    numbers,
    parts,
    write_dictionary_learning,
    write_gemma_scope,
    write_gemma_scope_2,
    write_goodfire,
    write_llama_scope,
    write_llamascopium,
    write_qwen_scope,
    write_saelens,
    write_sparsify,
)

from sae_bench.errors import UserError
from sae_bench.formats.hook_names import Place
from sae_bench.formats.open import find_sources, open_sae

DL_CLASSES = {
    "AutoEncoder": "relu", "AutoEncoderNew": "relu", "GatedAutoEncoder": "gated", "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu", "MatryoshkaBatchTopKSAE": "jumprelu", "JumpReluAutoEncoder": "jumprelu",
}  # fmt: skip
WRITERS = {
    "gemma-scope": (lambda folder: write_gemma_scope(folder), "jumprelu"),
    "sparsify": (lambda folder: write_sparsify(folder), "topk"),
    **{f"saelens {theirs}": (lambda folder, theirs=theirs: write_saelens(folder / "s", theirs), ours)
       for theirs, ours in {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}.items()},
    "saelens, b_dec not subtracted": (lambda folder: write_saelens(folder / "s", apply_b_dec_to_input=False), "relu"),
    "saelens topk, norms": (
        lambda folder: write_saelens(folder / "s", "topk", rescale_acts_by_decoder_norm=True), "topk"
    ),
    **{f"dictionary_learning {name}": (lambda folder, name=name: write_dictionary_learning(folder / "d", name), ours)
       for name, ours in DL_CLASSES.items()},
    **{f"saelens {theirs} checkpoint": (lambda folder, theirs=theirs: write_saelens(folder / "s", theirs), "jumprelu")
       for theirs in ("batchtopk", "matryoshka_batchtopk")},
    "saelens batchtopk checkpoint, norms": (
        lambda folder: write_saelens(folder / "s", "batchtopk", rescale_acts_by_decoder_norm=True), "jumprelu"
    ),
    "gemma-scope-2": (lambda folder: write_gemma_scope_2(folder), "jumprelu"),
    "qwen-scope": (lambda folder: write_qwen_scope(folder), "topk"),
    "goodfire": (lambda folder: write_goodfire(folder), "relu"),
    **{f"llama-scope {act_fn}": (lambda folder, act_fn=act_fn: write_llama_scope(
           folder, act_fn=act_fn, jump_relu_threshold=0.7 if act_fn == "jumprelu" else 0.0), act_fn)
       for act_fn in ("relu", "topk", "jumprelu")},
    **{f"llamascopium {act_fn}": (lambda folder, act_fn=act_fn: write_llamascopium(folder, act_fn), act_fn)
       for act_fn in ("relu", "topk", "jumprelu")},
    "llamascopium jumprelu, norms left out": (
        lambda folder: write_llamascopium(folder, sparsity_include_decoder_norm=False), "jumprelu"
    ),
    "llamascopium inference": (lambda folder: write_llamascopium(folder, norm_activation="inference"), "jumprelu"),
}  # fmt: skip


def opened(path):
    (source,) = find_sources(str(path))
    return open_sae(source)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_foreign_sae_gives_its_authors_latents_and_reconstructions(tmp_path, kind):
    write, arch = WRITERS[kind]
    folder, encode = write(tmp_path)
    foreign = opened(folder)
    assert (foreign.arch, foreign.d_in, foreign.d_sae) == (arch, D, F)
    assert (foreign.place.kind, foreign.place.layer) == ("resid_post", 1)
    sae = foreign.build()
    assert sae.name == arch
    x = 3 * numbers(200, D, seed=9)
    f, w = encode(x), parts()
    assert 0.01 < float((f > 0).float().mean()) < 0.9
    W_dec, b_dec = w["W_dec"], w["b_dec"]
    normed = kind == "dictionary_learning AutoEncoder" or kind.endswith(", norms") or kind.startswith("llama")
    if normed and not kind.endswith("left out"):  # latents times norms, rows of norm one
        W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    if kind.startswith("llama") and not kind.endswith("inference"):
        b_dec = b_dec * MEAN_NORM / D**0.5
    torch.testing.assert_close(sae.encode(x).to_dense(), f, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(x), f @ W_dec + b_dec, rtol=1e-4, atol=1e-4)


def test_gemma_scope_by_hand_at_just_above_and_just_below_the_threshold(tmp_path):
    """x = (1, 2): z = (2, 4) + (1, -1) = (3, 3), and (0, ...) further on; thresholds beside them by one number."""
    at = np.float32(3)
    below, above = np.nextafter(at, np.float32(0)), np.nextafter(at, np.float32(9))
    arrays = {
        "W_enc": [[2, 0, 2, 0], [0, 2, 0, -2]],  # z without biases, of x = (1, 2): 2, 4, 2, -4
        "b_enc": [1, -1, 1, 3],  # z = 3, 3, 3, -1
        "threshold": [at, below, above, 0],
        "W_dec": [[1, 0], [10, 1], [100, 0], [1000, 0]],
        "b_dec": [7, 5],  # is not subtracted from x
    }
    folder = tmp_path / "layer_0" / "width_4" / "average_l0_1"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: np.array(value, np.float32) for name, value in arrays.items()})
    sae = opened(folder).build()
    x = torch.tensor([[1.0, 2.0]])
    assert sae.encode(x).to_dense().tolist() == [[0, 3, 0, 0]], "at the threshold it is off, one number above it is on"
    assert sae(x).tolist() == [[37, 8]]


def test_a_large_mean_survives_being_folded_in(tmp_path):
    """As in residual streams: b_dec a thousand times as long as what varies about it."""
    w = parts()
    offset = 1000 * numbers(D, seed=4)
    folder, _ = write_dictionary_learning(tmp_path / "d", "AutoEncoder", bias=offset)
    x = offset + numbers(50, D, seed=9)
    truth = ((x - offset).double() @ w["W_enc"].double() + w["b_enc"].double()).relu() * w["W_dec"].double().norm(dim=1)
    torch.testing.assert_close(opened(folder).build().encode(x).to_dense().double(), truth, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(tmp_path, dtype):
    from safetensors.torch import load_file, save_file

    folder, _ = write_saelens(tmp_path / "s", "jumprelu", apply_b_dec_to_input=False)
    path = folder / "sae_weights.safetensors"
    half = {name: value.to(dtype) for name, value in load_file(path).items()}
    save_file(half, path)
    sae = opened(folder).build()
    assert torch.equal(sae.W_dec, half["W_dec"].float())
    assert torch.equal(sae.theta, half["threshold"].float())


def test_files_of_saelens_before_version_6_are_read(tmp_path):
    folder, encode = write_saelens(tmp_path / "s", "topk")
    config = {
        "architecture": "standard", "d_in": D, "d_sae": F, "hook_point": "blocks.2.hook_mlp_out", "model_name": "gpt2",
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": None,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    foreign = opened(folder)
    assert (foreign.arch, foreign.k, foreign.place) == ("topk", K, Place("mlp_out", 2, "gpt2"))
    x = numbers(20, D, seed=9)
    torch.testing.assert_close(foreign.build().encode(x).to_dense(), encode(x), rtol=1e-4, atol=1e-4)


REFUSED = {
    "groupmax": (lambda t: write_sparsify(t, activation="groupmax"), "groupmax"),
    "transcoder": (lambda t: write_sparsify(t, transcode=True), "transcode"),
    "skip": (lambda t: write_sparsify(t, skip_connection=True), "skip_connection"),
    "signed": (lambda t: write_sparsify(t, signed=True), "signed"),
    "no k": (lambda t: write_sparsify(t, k=0), "k is 0"),
    "k above the width": (lambda t: write_sparsify(t, k=99), "k is 99"),
    "layer norm": (lambda t: write_saelens(t / "s", normalize_activations="layer_norm"), "layer_norm"),
    "other architecture": (lambda t: write_saelens(t / "s", **{"architecture": "temporal"}), "temporal"),
    "other activation": (lambda t: write_saelens(t / "s", activation_fn="tanh-relu"), "tanh-relu"),
    "matryoshka": (
        lambda t: write_dictionary_learning(t / "d", "MatryoshkaBatchTopKSAE", threshold=torch.tensor(-1.0)), "batch"
    ),
    "batch topk": (lambda t: write_dictionary_learning(t / "d", "BatchTopKSAE", threshold=torch.tensor(-1.0)), "batch"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_built_in_architecture_computes_is_refused_by_its_name(tmp_path, kind):
    write, part = REFUSED[kind]
    try:
        folder, _ = write(tmp_path)
    except KeyError:  # the writer has no tensors for it: those of another will do
        folder, _ = write_saelens(tmp_path / "t")
        settings = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(settings | {"architecture": "temporal"}))
    with pytest.raises(UserError, match=part):
        opened(folder)


def test_thresholds_below_zero_behind_a_relu_are_zero(tmp_path):
    """relu(z) (z > theta) is relu(z) for every theta <= 0."""
    from safetensors.torch import load_file, save_file

    folder, _ = write_saelens(tmp_path / "s", "jumprelu")
    path = folder / "sae_weights.safetensors"
    w = load_file(path)
    save_file(w | {"threshold": -w["threshold"]}, path)
    x, w = 3 * numbers(200, D, seed=9), parts()
    z = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    torch.testing.assert_close(opened(folder).build().encode(x).to_dense(), z.relu(), rtol=1e-4, atol=1e-4)


def test_log_thresholds_float64_and_unused_tensors_of_other_types_are_read(tmp_path):
    from safetensors.torch import load_file, save_file

    folder, encode = write_saelens(tmp_path / "s", "jumprelu")
    path = folder / "sae_weights.safetensors"
    w = {name: value.double() for name, value in load_file(path).items()}
    w["log_threshold"] = w.pop("threshold").log()
    save_file(w | {"steps": torch.tensor([7]), "mask": torch.tensor([True])}, path)
    x = 3 * numbers(200, D, seed=9)
    torch.testing.assert_close(opened(folder).build().encode(x).to_dense(), encode(x), rtol=1e-4, atol=1e-4)
    save_file(w | {"b_enc": torch.zeros(F, dtype=torch.int64)}, path)
    with pytest.raises(UserError, match="b_enc has the dtype I64"):
        opened(folder)


def test_pickles_and_npz_files_hold_float64_and_unused_arrays_of_other_types_too(tmp_path):
    folder, encode = write_dictionary_learning(
        tmp_path / "d", "AutoEncoderNew", **{"encoder.bias": parts()["b_enc"].double(), "seen": torch.tensor([True])}
    )
    x = 3 * numbers(200, D, seed=9)
    torch.testing.assert_close(opened(folder).build().encode(x).to_dense(), encode(x), rtol=1e-4, atol=1e-4)
    folder, encode = write_gemma_scope(tmp_path)
    arrays = {name: value.astype(np.float64) for name, value in np.load(folder / "params.npz").items()}
    np.savez(folder / "params.npz", **arrays, step=np.array([3]))
    torch.testing.assert_close(opened(folder).build().encode(x).to_dense(), encode(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [5.0, 5])
def test_a_whole_number_may_be_written_with_a_point(tmp_path, k):
    folder, _ = write_sparsify(tmp_path, k=k)
    assert opened(folder).k == 5
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "num_latents": F, "k": 5.5}))
    with pytest.raises(UserError, match=r"k is 5\.5"):
        opened(folder)


def test_nan_in_weights_is_said_of_the_weights(tmp_path):
    folder, _ = write_dictionary_learning(tmp_path / "d", "AutoEncoder", bias=torch.full((D,), float("nan")))
    with pytest.raises(UserError, match="holds NaN or infinity"):
        opened(folder).build()
