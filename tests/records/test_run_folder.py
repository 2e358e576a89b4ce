"""A run's folder: files are there whole or not at all, and what is read is what was written."""

import errno
import math
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from sae_bench import ARCHITECTURES, SAEConfig
from sae_bench.errors import UserError
from sae_bench.formats.ours import write
from sae_bench.records.files import inside, read_json, write_bytes, write_json
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import SAEDescription
from sae_bench.saes.save import load_sae, save_sae


@pytest.fixture
def saved(tmp_path):
    sae = ARCHITECTURES["jumprelu"](SAEConfig(d_in=6, d_sae=9, l0=2)).fold(3.0)
    description = SAEDescription.model_construct(id="mine")
    write(tmp_path / "sae", sae, description, {"hook_name": "blocks.1.attn.hook_z"}, [{"step": 0, "loss": 1.5}])
    return sae, tmp_path / "sae"


@pytest.mark.parametrize("name", ["../else", "saes/../../else", "/etc/else", "link/../else"])
def test_a_name_that_another_process_gave_does_not_lead_out_of_the_folder(tmp_path, name):
    with pytest.raises(UserError, match="lead out of it"):
        inside(tmp_path / "run", name)
    assert inside(tmp_path / "run", "saes/one/cfg.json") == tmp_path / "run" / "saes" / "one" / "cfg.json"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(UserError, match=r"cannot write .*No space left.*choose another --out"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "tolerated"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_syncs_no_folders_is_written_to_all_the_same(tmp_path, monkeypatch, number, tolerated):
    real = os.fsync

    def sync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    with nullcontext() if tolerated else pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    replace = os.replace

    def look(temporary, target):
        assert path.read_bytes() == b"old"
        assert Path(temporary).read_bytes() == b"new"
        replace(temporary, target)

    monkeypatch.setattr(os, "replace", look)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_without_meaning_elsewhere_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"a": [1.0, value]})
    assert list(tmp_path.iterdir()) == []


def test_the_log_of_a_run_that_diverged_is_still_json(tmp_path):
    sae = ARCHITECTURES["topk"](SAEConfig(d_in=6, d_sae=9, l0=2)).fold(3.0)
    save_sae(tmp_path, sae, None, {}, [{"step": 0, "loss": 1.5}, {"step": 1, "loss": math.nan}])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "loss": 1.5}\n{"step": 1, "loss": null}\n'


def test_json_is_written_in_one_order(tmp_path):
    write_json(tmp_path / "a", {"x": 1, "y": "±"})
    write_json(tmp_path / "b", {"y": "±", "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "±".encode() in (tmp_path / "a").read_bytes()


def test_a_broken_or_missing_json_file_is_named(tmp_path):
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"half\.json is not valid JSON"):
        read_json(tmp_path / "half.json")
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        read_json(tmp_path / "none.json")


def test_a_saved_sae_comes_back(saved):
    sae, folder = saved
    loaded = load_sae(folder)
    assert loaded.config == sae.config
    for (name, ours), (_, theirs) in zip(loaded.named_parameters(), sae.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert not ours.requires_grad
    assert read_json(folder / "cfg.json")["reshape_activations"] == "hook_z"


def test_weights_that_changed_after_saving_are_refused(saved):
    _, folder = saved
    path = folder / "sae_weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"checksum differs.*delete"):
        load_sae(folder)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        load_sae(folder)


def test_an_sae_is_finished_only_when_its_description_is_there(saved, tmp_path, monkeypatch):
    """Everything else is written before, so a kill at any moment leaves an SAE that is trained again."""
    _, folder = saved
    run = RunFolder(tmp_path / "run")
    written = []

    def note(path, content):
        assert not run.has_sae("mine", "hash")
        written.append(path.name)
        write_bytes(path, content)

    monkeypatch.setattr("sae_bench.saes.save.write_bytes", note)
    monkeypatch.setattr("sae_bench.records.files.write_bytes", note)
    save_sae(run.sae_path("mine"), load_sae(folder), None, {}, [], "hash")
    assert written[-1] == "sae_bench.json"
    assert run.has_sae("mine", "hash")
    assert not run.has_sae("mine", "other settings")
