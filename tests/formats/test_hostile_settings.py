"""Settings from strangers, and descriptions that they forged: one clear line, or no harm."""

import json
from contextlib import suppress

import pytest
import torch
from foreign_files import (
    F,
    write_saelens,
)
from safetensors.torch import load_file, save_file
from test_hostile_files import MAKERS, WEIGHTS, load, refused, saved_sae

from sae_bench.errors import UserError
from sae_bench.records.files import read_sealed, write_sealed

GEMMA_SCOPE_2 = {
    "hf_hook_point_in": "model.layers.1.output", "hf_hook_point_out": "model.layers.1.output", "width": F,
    "model_name": "google/gemma-3-4b-pt", "architecture": "jump_relu", "l0": 60, "affine_connection": False,
    "type": "sae",
}  # fmt: skip
"""A configuration as it is published."""
FORGED = {
    "no description": lambda own: {"arch": "topk"},
    "a folder elsewhere": lambda own: own | {"description": own["description"] | {"id": "../../elsewhere"}},
    "other sizes": lambda own: own | {"config": own["config"] | {"d_sae": 1 << 40}},
    "settings of another kind": lambda own: own | {"config": [1]},
    "no sparsity": lambda own: own | {"config": own["config"] | {"l0": None}},
    "a site of another kind": lambda own: own | {"description": own["description"] | {"site": 3}},
    "another architecture": lambda own: own | {"arch": "jumprelu"},
    "an unknown architecture": lambda own: own | {"arch": "os.system"},
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_description_with_a_valid_seal_is_refused(tmp_path, how):
    """A checksum in the same file shows damage, not who wrote it."""
    folder = saved_sae(tmp_path)
    load(folder)
    own = read_sealed(folder / "sae_bench.json")
    write_sealed(folder / "sae_bench.json", FORGED[how](own))
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "[" * 100_000, '{"a": ' * 50_000, "\xff\xfe"])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path, text):
    folder = MAKERS["saelens"](tmp_path)
    (folder / "cfg.json").write_bytes(text.encode("latin-1"))
    refused(folder)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("saelens", "cfg.json"), ("dictionary_learning", "config.json"), ("llama-scope", "hyperparams.json")],
)
def test_a_missing_configuration_is_named(tmp_path, kind, name):
    folder = MAKERS[kind](tmp_path)
    (folder / name).unlink()
    assert f"{name} is missing" in refused(folder)


@pytest.mark.parametrize("value", [{"a": 1}, [1], 7, None, "x", 1e400, -3, True])
@pytest.mark.parametrize(
    "key", ["architecture", "k", "hook_name", "activation_fn", "metadata", "normalize_activations"]
)
def test_a_setting_of_any_other_kind_is_refused_or_harmless(tmp_path, key, value):
    folder, _ = write_saelens(tmp_path / "s", "topk")
    settings = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(settings | {key: value}))
    with suppress(UserError):
        load(folder)


@pytest.mark.parametrize("value", [{"a": 1}, [1], 7, None, "x", 1e400, -3, True])
@pytest.mark.parametrize("kind", ["llama-scope", "llamascopium", "gemma-scope-2"])
def test_settings_of_published_saes_of_any_other_kind_are_refused_or_harmless(tmp_path, kind, value):
    folder = MAKERS[kind](tmp_path)
    path = folder / {"llama-scope": "hyperparams.json"}.get(kind, "config.json")
    settings = json.loads(path.read_text()) if path.exists() else GEMMA_SCOPE_2
    for key in settings:
        path.write_text(json.dumps(settings | {key: value}))
        with suppress(UserError):
            assert all(torch.isfinite(weight).all() for weight in load(folder).parameters())


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_mean_norm_that_is_none_is_refused(tmp_path, norm):
    folder = MAKERS["llamascopium"](tmp_path)
    path = folder / WEIGHTS["llamascopium"]
    (name,) = (name for name in load_file(path) if name.startswith("dataset"))
    save_file(load_file(path) | {name: torch.tensor(norm)}, path)
    assert f"{name} is {norm}: it must be a number above zero" in refused(folder)
