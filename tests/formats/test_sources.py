"""`--sae` names an SAE by folder, file, glob or a place on the hub, and its path or hook names the site."""

import pytest
import torch
from foreign_files import (
    D,
    numbers,
    write_gemma_scope,
    write_sparsify,
)

from sae_bench.errors import UserError
from sae_bench.formats.hook_names import Place, place_of_hook, place_of_path
from sae_bench.formats.open import find_sources, open_sae


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.9.hook_resid_post", Place("resid_post", 9)),
        ("blocks.9.hook_resid_pre", Place("resid_post", 8)),
        ("blocks.0.hook_resid_pre", Place("resid_pre", 0)),
        ("blocks.9.hook_resid_mid", Place("resid_mid", 9)),
        ("blocks.9.hook_attn_out", Place("attn_add", 9)),
        ("blocks.9.hook_mlp_out", Place("mlp_out", 9)),
        ("blocks.9.attn.hook_z", Place("attn_out", 9)),
        ("model.layers.3.mlp", Place("path:model.layers.3.mlp")),
    ],
)
def test_hooks_name_sites(name, place):
    assert place_of_hook(name) == place


def test_a_hook_that_is_no_site_is_kept_as_unclear():
    place = place_of_hook("blocks.3.attn.hook_q")
    assert (place.kind, place.layer) == (None, 3)
    assert "hook_q" in place.unclear


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("gemma-scope:9b-pt-res/layer_20/width_16k/average_l0_68", Place("resid_post", 20)),
        ("gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_9/params.npz", Place("mlp_out", 3)),
        ("hf:google/gemma-scope-9b-pt-att/layer_7/width_16k/average_l0_9", Place("attn_out", 7)),
        ("somewhere/layer_4", Place(None, 4)),
        ("multilayer_5/resid_post", Place("resid_post", None)),
        ("runs/a/saes/topk.layer_9.resid_post.w64.l0_8.seed0", Place("resid_post", 9)),
    ],
)
def test_paths_name_sites(path, place):
    assert place_of_path(path) == place


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("conf.yaml", "a temporal SAE, which looks at other tokens too"),
        ("W_enc_3.safetensors", "a cross-layer transcoder"),
        ("layer_3.safetensors", "a transcoder, cross-layer transcoder or crosscoder"),
        ("params_layer_3.safetensors", "a transcoder, cross-layer transcoder or crosscoder"),
    ],
)
def test_a_layout_that_is_not_read_is_called_by_its_name(tmp_path, name, whose):
    (tmp_path / name).write_bytes(b"x")
    for text in (tmp_path, tmp_path / name, f"hf:owner/repo/{name}"):
        with pytest.raises(UserError, match=f"the layout of {whose}, which is not evaluated"):
            find_sources(str(text))


def test_globs_files_and_folders_name_the_same_sae(tmp_path):
    folder, _ = write_gemma_scope(tmp_path)
    write_sparsify(tmp_path / "other")
    texts = [str(folder), str(folder / "params.npz"), str(tmp_path / "gemma*" / "**" / "params.npz")]
    names = {source.name for text in texts for source in find_sources(text)}
    assert names == {str(folder)}
    assert len(find_sources(str(tmp_path / "**"))) == 2
    for text in (str(tmp_path / "nothing"), str(tmp_path), str(tmp_path / "x*"), "gemma-scope:9b", "hf:owner"):
        with pytest.raises(UserError, match="--sae"):
            find_sources(text)


class FakeHub:
    """A hub of one repository whose cache links names to bytes kept elsewhere, as the real one's does."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def snapshot_download(self, repo, *, revision, allow_patterns):
        self.asked.append((repo, revision))
        snapshot = self.folder / "snapshots" / "c0ffee"
        for pattern in allow_patterns:
            blob = self.folder / "repo" / pattern
            if blob.exists() and not (snapshot / pattern).exists():
                (snapshot / pattern).parent.mkdir(parents=True, exist_ok=True)
                (snapshot / pattern).symlink_to(blob)
        snapshot.mkdir(parents=True, exist_ok=True)
        return str(snapshot)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    hub = FakeHub(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub


def test_gemma_scope_names_and_hub_paths_are_fetched_and_placed(tmp_path, fake_hub):
    _, encode = write_gemma_scope(tmp_path / "local")
    (tmp_path / "repo").mkdir()
    (tmp_path / "local" / "gemma-scope-2b-pt-res" / "layer_1").rename(tmp_path / "repo" / "layer_1")
    path = "layer_1/width_56/average_l0_9"
    for text in (f"gemma-scope:2b-pt-res/{path}", f"hf:google/gemma-scope-2b-pt-res/{path}/params.npz"):
        (source,) = find_sources(text)
        foreign = open_sae(source)
        assert (source.name, foreign.source.hub_commit) == (text, "c0ffee")
        assert foreign.place == Place("resid_post", 1)
        x = numbers(20, D, seed=9)
        torch.testing.assert_close(foreign.build().encode(x).to_dense(), encode(x), rtol=1e-4, atol=1e-4)
    assert {repo for repo, _ in fake_hub.asked} == {"google/gemma-scope-2b-pt-res"}
    find_sources(f"hf:google/gemma-scope-2b-pt-res@v2/{path}")
    assert fake_hub.asked[-1] == ("google/gemma-scope-2b-pt-res", "v2")
    with pytest.raises(UserError, match="has no SAE"):
        find_sources("hf:google/gemma-scope-2b-pt-res/layer_9")


def test_the_name_of_a_file_on_the_hub_says_no_site(tmp_path, fake_hub):
    write_sparsify(tmp_path / "repo")[0].rename(tmp_path / "repo" / "layers.1.mlp")
    for text in ("hf:owner/name/layers.1.mlp", "hf:owner/name/layers.1.mlp/sae.safetensors"):
        (source,) = find_sources(text)
        assert open_sae(source).place == Place("path:layers.1.mlp")


def test_what_the_hub_refuses_is_one_line_with_a_remedy(monkeypatch):
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    for error, part in (
        (GatedRepoError.__new__(GatedRepoError), "accept its terms"),
        (LocalEntryNotFoundError("offline"), "check the network"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        with pytest.raises(UserError, match=part):
            find_sources("hf:owner/name/path")
