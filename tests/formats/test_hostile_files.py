"""Files from strangers: whatever is in them, one clear line; nothing runs, and nothing larger than the file is made."""

import json
import pickle
import random
import resource
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import (
    D,
    F,
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
from safetensors.torch import load_file, save_file

from sae_bench import ARCHITECTURES, SAEConfig
from sae_bench.errors import UserError
from sae_bench.formats.headers import safetensors_shapes
from sae_bench.formats.open import find_sources, open_sae
from sae_bench.records.schema import SAEDescription, SiteDescription
from sae_bench.saes.save import save_sae

MAKERS = {
    "gemma-scope": lambda folder: write_gemma_scope(folder)[0],
    "saelens": lambda folder: write_saelens(folder / "s", "jumprelu")[0],
    "sparsify": lambda folder: write_sparsify(folder)[0],
    "dictionary_learning": lambda folder: write_dictionary_learning(folder / "d", "JumpReluAutoEncoder")[0],
    "gemma-scope-2": lambda folder: write_gemma_scope_2(folder)[0],
    "qwen-scope": lambda folder: write_qwen_scope(folder)[0],
    "goodfire": lambda folder: write_goodfire(folder)[0],
    "llama-scope": lambda folder: write_llama_scope(folder)[0],
    "llamascopium": lambda folder: write_llamascopium(folder)[0],
}
PICKLES = {"dictionary_learning": "ae.pt", "qwen-scope": "layer1.sae.pt",
           "goodfire": "Llama-3.1-8B-Instruct-SAE-l1.pth"}  # fmt: skip
WEIGHTS = PICKLES | {
    "gemma-scope": "params.npz", "saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors",
    "gemma-scope-2": "params.safetensors", "llama-scope": "checkpoints/final.safetensors",
    "llamascopium": "sae_weights.safetensors",
}  # fmt: skip
LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
THEIRS = {
    "sparsify": {"W_enc": "encoder.weight", "b_enc": "encoder.bias"},
    "gemma-scope-2": {"W_enc": "w_enc", "W_dec": "w_dec"},
    "goodfire": {ours: theirs.replace(".", "_linear.") for ours, theirs in LINEAR.items()},
    "llama-scope": LINEAR,
    "llamascopium": {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"},
}
"""What a format calls a tensor, where it is not our name."""


def load(folder: Path):
    (source,) = find_sources(str(folder))
    source.sha256()
    return open_sae(source).build()


def saved_sae(folder: Path) -> Path:
    sae = ARCHITECTURES["topk"](SAEConfig(d_in=D, d_sae=F, l0=4)).requires_grad_(False).fold(2.0)
    site = {"layer": 1, "kind": "resid_post", "path": "model.layers.1", "side": "output", "d_in": D}
    save_sae(
        folder / "topk",
        sae,
        SAEDescription.model_construct(id="topk", arch="topk", site=SiteDescription(name="layer_1.resid_post", **site)),
        {"model_name": "m"},
        [],
    )
    return folder / "topk"


@contextmanager
def little_memory(spare: int = 256 << 20) -> Iterator[None]:
    """Within the block no more than this can be allocated, by whichever library (on Linux)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + spare, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def refused(folder: Path) -> str:
    """The one line that a file is refused with; meanwhile no more memory is taken than a small file is worth."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error, little_memory():
            load(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20
    assert "allocate" not in str(error.value), "refused for what it claims, not for want of memory"
    (line,) = str(error.value).splitlines()
    assert str(folder) in line
    return line


def tensors_of(kind: str, path: Path) -> dict[str, torch.Tensor]:
    if kind == "gemma-scope":
        return {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    return torch.load(path, weights_only=True) if kind in PICKLES else load_file(path)


def save_tensors(kind: str, path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if kind == "gemma-scope":
        np.savez(path, **{name: value.numpy() for name, value in tensors.items()})
    elif kind in PICKLES:
        torch.save(tensors, path)
    else:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def with_value(value: float, index: int):
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.flatten()[index] = value
        return changed

    return change


CHANGES = {
    "NaN": ("W_dec", with_value(float("nan"), 3), "NaN"),
    "infinity": ("b_dec", with_value(float("inf"), -1), "infinity"),
    "a transposed matrix": ("W_enc", lambda tensor: tensor.T.contiguous(), "W_enc"),
    "a transposed decoder": ("W_dec", lambda tensor: tensor.T.contiguous(), "W_dec"),
    "a bias too long": ("b_enc", lambda tensor: torch.cat([tensor, tensor]), "b_enc"),
    "whole numbers": ("W_enc", lambda tensor: tensor.int(), "W_enc"),
    "no dimension": ("W_dec", lambda tensor: torch.tensor(1.0), "W_dec"),
    "nothing": ("b_enc", lambda tensor: None, "b_enc is missing"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", MAKERS)
def test_wrong_tensors_are_refused_by_their_names(tmp_path, kind, change):
    folder = MAKERS[kind](tmp_path)
    path = folder / WEIGHTS[kind]
    name, alter, part = CHANGES[change]
    theirs = THEIRS.get(kind, {}).get(name, name)
    part, name = part.replace(name, theirs), theirs
    tensors = tensors_of(kind, path)
    altered = alter(tensors[name])
    tensors |= {} if altered is None else {name: altered}
    save_tensors(kind, path, {key: value for key, value in tensors.items() if altered is not None or key != name})
    assert part in refused(folder)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_file_cut_anywhere_is_refused(tmp_path, kind):
    """At 200 random places, the ends of the header and of the file among them."""
    folder = MAKERS[kind](tmp_path)
    path = folder / WEIGHTS[kind]
    whole = path.read_bytes()
    draw = random.Random(0)
    places = {0, 1, 7, 8, 9, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(194))}
    while len(places) < 200:
        places.add(draw.randrange(len(whole)))
    for place in sorted(places):
        path.write_bytes(whole[:place])
        with pytest.raises(UserError, match=str(folder)):
            load(folder)


@pytest.mark.parametrize("kind", MAKERS)
def test_damage_anywhere_is_refused_or_harmless(tmp_path, kind):
    """Random bytes turned over: one line or numbers that are finite, never another exception."""
    folder = MAKERS[kind](tmp_path)
    path = folder / WEIGHTS[kind]
    whole = path.read_bytes()
    draw = random.Random(1)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 4, 40))):
            damaged[draw.choice((draw.randrange(len(whole)), draw.randrange(min(600, len(whole)))))] = draw.randrange(
                256
            )
        path.write_bytes(damaged)
        try:
            sae = load(folder)
        except UserError:
            continue
        assert all(torch.isfinite(value).all() for value in sae.parameters())


@pytest.mark.parametrize("kind", MAKERS)
def test_links_and_folders_in_a_files_place_are_refused(tmp_path, kind):
    folder = MAKERS[kind](tmp_path)
    path = folder / WEIGHTS[kind]
    moved = path.rename(tmp_path / "elsewhere")
    path.symlink_to(moved)
    assert "symbolic link" in refused(folder)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "symbolic link" in refused(folder)
    path.unlink()
    path.mkdir()
    assert "no regular file" in refused(folder)


def test_a_pipe_in_a_files_place_is_refused_and_not_waited_for(tmp_path):
    import os

    folder = MAKERS["saelens"](tmp_path)
    (folder / "cfg.json").unlink()
    os.mkfifo(folder / "cfg.json")
    assert "no regular file" in refused(folder)


class Code:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", PICKLES)
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, kind, protocol):
    folder = MAKERS[kind](tmp_path)
    path = folder / PICKLES[kind]
    torch.save(tensors_of(kind, path) | {"more": Code()}, path, pickle_protocol=protocol)
    line = refused(folder)
    assert "nothing in it was run" in line
    path.write_bytes(pickle.dumps(Code()))
    refused(folder)


def test_a_pickle_that_asks_for_memory_is_refused(tmp_path):
    """torch's own reader would grant it: bytearray is one of the names that it trusts."""

    class Hungry:
        def __reduce__(self):
            return bytearray, (100 << 30,)

    folder = MAKERS["dictionary_learning"](tmp_path)
    torch.save({"W_enc": Hungry()}, folder / "ae.pt")
    assert "bytearray" in refused(folder)


@pytest.mark.parametrize("kind", PICKLES)
def test_a_tensor_that_repeats_one_number_a_billion_times_is_refused(tmp_path, kind):
    folder = MAKERS[kind](tmp_path)
    path, theirs = folder / PICKLES[kind], THEIRS.get(kind, {})
    sizes = {"W_enc": (1 << 15, 1 << 20), "W_dec": (1 << 20, 1 << 15)}
    huge = {theirs.get(name, name): torch.zeros(1).expand(shape) for name, shape in sizes.items()}
    torch.save(tensors_of(kind, path) | huge, path)
    assert "more than the file holds" in refused(folder)


HUGE = 100 << 30


@pytest.mark.parametrize("kind", ["saelens", "sparsify", "gemma-scope-2", "llama-scope", "llamascopium"])
def test_a_header_that_claims_100_gb_is_refused(tmp_path, kind):
    folder = MAKERS[kind](tmp_path)
    path = folder / WEIGHTS[kind]
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    header[last] |= {"shape": [HUGE // 4 // D, D], "data_offsets": [header[last]["data_offsets"][0], HUGE]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    refused(folder)
    path.write_bytes(struct.pack("<Q", HUGE) + data[8:])
    assert "header claims" in refused(folder)


def test_tensors_that_share_their_bytes_are_refused_by_the_header_alone(tmp_path):
    header = {name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} for name in ("W_enc", "W_dec")}
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(UserError, match="place and shape do not agree"):
        safetensors_shapes(tmp_path / "x.safetensors")


def test_an_array_that_claims_100_gb_is_refused(tmp_path):
    folder = MAKERS["gemma-scope"](tmp_path)
    path = folder / "params.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    shape = f"({D}, {F})".encode()
    claimed = f"({D}, {HUGE // 4 // D})".encode()
    array = members["W_enc.npy"]
    assert shape in array
    at = array.index(b"}")
    header = array[:at].replace(shape, claimed)
    members["W_enc.npy"] = header + b"}" + array[at + 1 + len(header) - at :]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "W_enc claims the shape" in refused(folder)


def test_objects_and_zip_bombs_in_an_npz_are_refused(tmp_path):
    folder = MAKERS["gemma-scope"](tmp_path)
    path = folder / "params.npz"
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"b_enc": np.array([Code()] * F, dtype=object)}), allow_pickle=True)
    assert "dtype object" in refused(folder)
    np.savez_compressed(path, **(arrays | {"W_enc": np.zeros((D, 1 << 20), np.float32)}))
    assert "compressed" in refused(folder)


def test_members_that_overlap_are_refused(tmp_path):
    """A thousand entries of a zip's list that all point at the same bytes."""
    folder = MAKERS["gemma-scope"](tmp_path)
    path = folder / "params.npz"
    with zipfile.ZipFile(path, "a") as archive:
        entry = archive.getinfo("W_enc.npy")
        for i in range(1000):
            copy = zipfile.ZipInfo(f"copy_{i}.npy")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(copy, name, getattr(entry, name))
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
        archive._didModify = True
    assert "it claims" in refused(folder)
