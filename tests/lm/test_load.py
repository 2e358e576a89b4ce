"""Loading a language model by name or folder: what comes, and the one line where nothing does."""

import hashlib
import json
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http as hub_http
from tiny import D_MODEL, FAMILIES, N_LAYERS, save_tiny, tiny_llama
from tiny import tiny_tokenizer as tokenizer_of

from sae_bench.errors import UserError
from sae_bench.lm import load
from sae_bench.lm.load import hub_commit, language_model_shape, load_language_model
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.model_names import HUB_MODELS, resolve_model
from sae_bench.lm.sites import find_site

TOKENS = torch.arange(30).reshape(2, 15) + 5
LAYER = 1


def wrap(model, family="gemma2"):
    return LanguageModel(model, tokenizer_of(family), "tiny")


def test_a_quantised_checkpoint_that_cannot_be_run_here_is_one_line_already_in_a_dry_run(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    for of in (language_model_shape, partial(load_language_model, device="cpu")):
        with pytest.raises(
            UserError, match=r"cannot be loaded \(Using `bitsandbytes` 4-bit .*\): install that"
        ) as error:
            of(str(folder), dtype=torch.float32)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [ImportError, KeyError, RuntimeError, TypeError, AttributeError])
@pytest.mark.parametrize("message", ["something\nover two lines", ""])
def test_whatever_a_loader_raises_is_one_line(tmp_path, monkeypatch, kind, message):
    def fail(*args, **kwargs):
        raise kind(message)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(UserError, match=r'model ".*" cannot be loaded \(\S.*\): ') as error:
        load_language_model(str(save_tiny(tmp_path, "llama")), device="cpu", dtype=torch.float32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_attention_heads": 0}, {"hidden_size": -8}, {"hidden_size": "8"}, {"num_hidden_layers": 0},
        {"vocab_size": 1}, {"hidden_act": "nonsense"}, {"num_key_value_heads": 3}, {"torch_dtype": "int3"},
        {"rope_scaling": {"type": "nonsense"}}, {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": {"quant_method": "nonsense"}}, {"quantization_config": "int4"},
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_that_makes_no_model_is_one_line(tmp_path, wrong):
    folder = save_tiny(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | wrong))
    for of in (language_model_shape, partial(load_language_model, device="cpu")):
        with suppress(UserError):  # which is one line by itself
            of(str(folder), dtype=torch.float32)


def test_words_beyond_the_embedding_are_one_line_and_special_ones_that_nobody_uses_are_none(tmp_path):
    folder, tokenizer = save_tiny(tmp_path, "llama"), tokenizer_of("llama")
    n_rows = len(tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    load_language_model(str(folder), device="cpu", dtype=torch.float32)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    for of in (language_model_shape, partial(load_language_model, device="cpu")):
        with pytest.raises(UserError, match=f"words up to number {n_rows + 1}, the model embeds {n_rows}: choose"):
            of(str(folder), dtype=torch.float32)


def test_a_tokenizer_that_would_fail_at_the_first_text_is_one_line(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"model_max_length": "long"}))
    with pytest.raises(UserError, match="model_max_length of its tokenizer is 'long', no number: mend"):
        load_language_model(str(folder), device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_a_folder(tmp_path, family):
    lm = load_language_model(str(save_tiny(tmp_path, family)), device="cpu", dtype=torch.float32)
    original = wrap(FAMILIES[family](), family)
    assert (lm.n_layers, lm.d_model, lm.max_context, lm.revision) == (N_LAYERS, D_MODEL, 128, None)
    assert (lm.name, lm.device, lm.dtype) == (str(tmp_path), torch.device("cpu"), torch.float32)
    assert lm.tokenizer.bos_token_id == (0 if family == "gpt_neox" else 2)
    assert lm.special_ids == {0, 1, 2, 3}
    assert len(lm.tokenizer) == lm.config.vocab_size
    assert torch.equal(lm.clean_pass(TOKENS).hidden, original.clean_pass(TOKENS).hidden)
    assert lm.weight_hash() == original.weight_hash()
    assert not any(weight.requires_grad for weight in lm.model.parameters())
    assert not lm.model.training


def test_gemma2_loads_with_the_attention_that_caps_its_scores(tmp_path):
    folder = str(save_tiny(tmp_path, "gemma2"))
    assert load_language_model(folder, device="cpu", dtype=torch.float32).config._attn_implementation == "eager"


def test_dtype_is_the_one_asked_for(tmp_path):
    lm = load_language_model(str(save_tiny(tmp_path, "llama")), device="cpu", dtype=torch.bfloat16)
    site = find_site(lm.model, "resid_post", LAYER)
    assert lm.dtype == lm.capture(TOKENS, [site])[site].dtype == torch.bfloat16


def test_weight_hash_is_the_documented_one_and_sees_every_change():
    lm = wrap(tiny_llama())
    digest = hashlib.sha256()
    for name, weight in sorted(lm.model.named_parameters()):
        digest.update(f"{name} torch.float32 {tuple(weight.shape)}\n".encode() + weight.numpy().tobytes())
    assert lm.weight_hash() == digest.hexdigest()
    changed = tiny_llama()
    with torch.no_grad():
        changed.model.norm.weight[-1] += 1e-6
    assert wrap(changed).weight_hash() != lm.weight_hash()
    assert wrap(tiny_llama().to(torch.bfloat16)).weight_hash() != lm.weight_hash()


def test_short_names():
    assert resolve_model("gemma-2-2b") == ("google/gemma-2-2b", "google/gemma-2-2b")
    assert resolve_model("owner/some-model_1.5") == ("owner/some-model_1.5", "owner/some-model_1.5")
    assert all(hub_name.count("/") == 1 for hub_name in HUB_MODELS.values())


@pytest.mark.parametrize("name", ["gema-2-2b", "./gemma-2-2b", "/no/such/folder"])
def test_names_that_mean_nothing(name):
    with pytest.raises(UserError, match=r"unknown model .*gemma-2-2b") as error:
        resolve_model(name)
    assert "\n" not in str(error.value)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(UserError, match=r"the folder has no config\.json"):
        load_language_model(str(tmp_path), device="cpu", dtype=torch.float32)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_language_model(str(tmp_path), device="cpu", dtype=torch.float32)
    assert "\n" not in str(error.value)
    (save_tiny(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be loaded .*model\.safetensors") as error:
        load_language_model(str(tmp_path), device="cpu", dtype=torch.float32)
    assert "\n" not in str(error.value)


def _hub_error(kind):
    if kind is LocalEntryNotFoundError:
        return kind("no such entry")
    return kind("refused", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            GatedRepoError,
            r'"owner/name" is gated: accept its licence at https://huggingface\.co/owner/name and run `hf a',
        ),
        (RepositoryNotFoundError, r'"owner/name" is not on the hub: check the name'),
        (RevisionNotFoundError, r'"owner/name" has no revision "v9"'),
        (LocalEntryNotFoundError, r'"owner/name" cannot be downloaded: check the network, or give a local folder'),
    ],
)
def test_what_the_hub_refuses_is_explained(monkeypatch, kind, message):
    def refuse(*args, **kwargs):
        raise OSError("We couldn't connect to the hub\nand so on") from _hub_error(kind)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(UserError, match=message) as error:
        load_language_model("owner/name", device="cpu", dtype=torch.float32, revision="v9")
    assert "\n" not in str(error.value)


def test_failed_tries_of_the_hub_are_one_word_and_no_noise(monkeypatch, caplog):
    def refuse(*args, **kwargs):
        for _ in range(3):
            hub_http.logger.warning("'[Errno -2]' thrown while requesting HEAD https://huggingface.co/owner/name")
            hub_http.logger.warning("Retrying in 8s [Retry 4/5].")
        hub_http.logger.warning("your token expires tomorrow")
        raise OSError("We couldn't connect to the hub")

    caplog.set_level("INFO")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    for _ in range(2):
        caplog.clear()
        with pytest.raises(UserError, match="cannot be downloaded"):
            load_language_model("owner/name", device="cpu", dtype=torch.float32)
        waiting, other = caplog.messages
        assert (waiting, other) == (
            "the model hub does not answer: trying again for half a minute", "your token expires tomorrow"
        )  # fmt: skip


def test_a_model_from_the_hub_is_named_by_its_commit(tmp_path, monkeypatch):
    """Offline, from a cache laid out as the hub's client lays it out."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--tiny"
    save_tiny(repository / "snapshots" / commit, "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    lm = load_language_model("owner/tiny", device="cpu", dtype=torch.float32)
    assert (lm.name, lm.revision) == ("owner/tiny", commit)
    assert hub_commit("owner/tiny", commit) == commit
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_language_model("owner/absent", device="cpu", dtype=torch.float32)


def test_what_does_not_fit_while_it_loads_is_called_so(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(
        UserError, match=r"has no room \(CUDA out of memory.*\): free some memory, or try another --dev"
    ):
        load_language_model(str(save_tiny(tmp_path, "llama")), device="cpu", dtype=torch.float32)


def test_room_for_a_quantised_checkpoint_is_not_counted_in_numbers_that_it_does_not_have(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path, "llama")
    monkeypatch.setattr(load, "free_bytes", lambda device: 1)
    with pytest.raises(UserError, match=r"needs 0\.00 GB in float32"):
        load_language_model(str(folder), device="cpu", dtype=torch.float32)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(load, "check_quantisation", lambda config: None)  # the packages are there, say
    with pytest.raises(UserError, match=r"cannot be loaded .*bitsandbytes"):  # and from_pretrained is asked
        load_language_model(str(folder), device="cpu", dtype=torch.float32)
