"""Of a language model all is known that can change a number: edited, it is another one."""

import importlib
from functools import partial

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from tiny import tiny_gemma2, tiny_tokenizer

from sae_bench.lm.fingerprint import NOT_DECIDING, fingerprint, hash_of_code
from sae_bench.lm.model import LanguageModel


def identity_of(edit=lambda lm: None):
    lm = LanguageModel(tiny_gemma2(), tiny_tokenizer("gemma2"), "tiny")
    edit(lm)
    return fingerprint(lm.identity())


def test_every_setting_of_a_configuration_is_in_a_models_identity_but_paths_and_versions():
    usual = identity_of()
    assert identity_of() == usual
    tried, unseen = set(), set()
    for name, value in tiny_gemma2().config.to_dict().items():
        try:
            changed = identity_of(partial(other_setting, name, another(value)))
        except (AttributeError, StrictDataclassFieldValidationError):
            continue  # no model has that
        tried.add(name)
        unseen |= {name} if changed == usual else set()
    assert unseen == tried & NOT_DECIDING | {"model_type"}  # which is the class's own
    assert tried >= {"rms_norm_eps", "rope_parameters", "sliding_window", "layer_types", "attn_logit_softcapping"}
    assert tried >= {"hidden_activation", "final_logit_softcapping", "query_pre_attn_scalar", "transformers_version"}


def other_setting(name, value, lm):
    setattr(lm.model.config, name, value)


def another(value):
    if isinstance(value, dict):
        return {**value, "rope_theta": 17.0}
    if isinstance(value, list):
        return value[::-1] if value != value[::-1] else [*value, *value]
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "relu"


def test_weights_buffers_and_special_tokens_are_in_a_models_identity():
    def buffer(value):
        return lambda lm: lm.model.register_buffer("correction", torch.tensor([value]))

    edits = [
        lambda lm: lm.model.model.norm.weight[-1].add_(1e-6),
        buffer(1.0),
        buffer(2.0),
        lambda lm: setattr(lm.tokenizer, "bos_token", lm.tokenizer.eos_token),
        lambda lm: lm.tokenizer.add_tokens(["zebra"]),
    ]
    assert len({identity_of(), *map(identity_of, edits)}) == 1 + len(edits)


def test_code_that_comes_with_a_model_is_in_its_identity_with_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "modeling_of_theirs.py").write_text("from norms_of_theirs import EPS\n\nclass Model: ...\n")
    hashes = []
    for eps in ("1e-6", "1e-5"):
        (tmp_path / "norms_of_theirs.py").write_text(f"EPS = {eps}\n")
        hashes.append(hash_of_code(importlib.import_module("modeling_of_theirs").Model))
    assert len({None, *hashes}) == 3


def test_code_that_comes_with_a_model_is_known_with_its_relative_imports_behind_a_link(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "code_of_theirs").symlink_to(tmp_path / "real")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "real" / "modeling.py").write_text("from .norms import EPS\n\nclass Model: ...\n")
    hashes = []
    for eps in ("1e-6", "1e-5"):
        (tmp_path / "real" / "norms.py").write_text(f"EPS = {eps}\n")
        hashes.append(hash_of_code(importlib.import_module("code_of_theirs.modeling").Model))
    assert len({None, *hashes}) == 3
