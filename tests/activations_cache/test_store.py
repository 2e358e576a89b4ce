"""Passes on the disk: what is served is what was kept, or nothing is."""

import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae_bench.activations_cache import store as store_module
from sae_bench.activations_cache.identity import folder_of, known_hashes
from sae_bench.activations_cache.sizes import Need, bytes_in, in_words
from sae_bench.activations_cache.store import PassStore
from sae_bench.errors import UserError
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import TokenBatch
from sae_bench.records.files import read_sealed, write_sealed

SITE = Site(1, "resid_post", "model.layers.1", "output", 3)
OTHER = Site(2, "resid_post", "model.layers.2", "output", 5)


def batch(seed: int, n: int = 4, size: int = 6) -> TokenBatch:
    tokens = torch.randint(3, 100, (n, size), generator=torch.Generator().manual_seed(seed))
    return TokenBatch(tokens, torch.full_like(tokens, seed))


def values(of: TokenBatch, site: Site = SITE) -> torch.Tensor:
    """No two passes have the same."""
    return of.tokens[..., None] + torch.arange(site.d_in) / 7


def store(root: Path, capture: str = "a", **how: object) -> PassStore:
    return PassStore(root / "folder", capture, root, **how)  # type: ignore[arg-type]


@pytest.fixture
def filled(tmp_path):
    """Three shards of a pass each."""
    one = store(tmp_path)
    for seed in range(3):
        one.add(batch(seed), 4, {SITE: values(batch(seed))})
        one.flush()
    return tmp_path


def shards(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


@pytest.mark.parametrize("flushed", [False, True])
def test_what_was_kept_is_found_by_its_tokens(tmp_path, flushed):
    one = store(tmp_path)
    for seed in range(3):
        one.add(batch(seed), 4, {SITE: values(batch(seed)), OTHER: values(batch(seed), OTHER)})
    if flushed:
        one.flush()
        assert len(shards(tmp_path)) == 2, "one for each site"
    for of in (one, store(tmp_path)) if flushed else (one,):
        for seed in (2, 0, 1):
            assert torch.equal(of.find(SITE, batch(seed).tokens, 4), values(batch(seed)))
            assert torch.equal(of.find(OTHER, batch(seed).tokens, 4), values(batch(seed), OTHER))
        assert of.find(SITE, batch(3).tokens, 4) is None


def test_the_dtype_is_the_one_that_was_captured(tmp_path):
    one, x = store(tmp_path), values(batch(0)).bfloat16()
    one.add(batch(0), 4, {SITE: x})
    one.flush()
    found = store(tmp_path).find(SITE, batch(0).tokens, 4)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, x)


def test_a_pass_serves_its_first_contexts_but_none_that_ran_in_another_number(filled):
    one, tokens = store(filled), batch(1).tokens
    assert torch.equal(one.find(SITE, tokens[:2], 4), values(batch(1))[:2])
    assert one.find(SITE, tokens[:2], 2) is None
    assert store(filled, alone=True).find(SITE, tokens[:2], 4) is None
    assert store(filled, alone=True).find(SITE, tokens, 4) is not None


def test_a_pass_with_the_same_opening_and_other_text_is_not_found(filled):
    tokens = batch(1).tokens.clone()
    tokens[2, 3] += 1
    assert store(filled).find(SITE, tokens, 4) is None


@pytest.mark.parametrize(
    "damage", ["flipped", "truncated", "missing", "description", "description flipped", "other kind"]
)
def test_a_damaged_shard_is_never_served_and_its_place_is_taken_anew(filled, caplog, damage):
    path = shards(filled)[1]
    if damage == "flipped":
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "missing":
        path.unlink()
    elif damage == "other kind":  # sealed: not what this version writes
        about = read_sealed(path.with_suffix(".json"))
        about["passes"][0]["n"] = "all"
        write_sealed(path.with_suffix(".json"), about)
    elif damage == "description":
        path.with_suffix(".json").write_text("{")
    else:
        path.with_suffix(".json").write_text(path.with_suffix(".json").read_text().replace('"n": 4', '"n": 3'))
    one = store(filled)
    assert one.find(SITE, batch(1).tokens, 4) is None
    assert "000001" in caplog.text
    assert "captured anew" in caplog.text
    assert torch.equal(one.find(SITE, batch(2).tokens, 4), values(batch(2))), "the others stay"
    one.add(batch(1), 4, {SITE: values(batch(1))})
    one.flush()
    assert torch.equal(store(filled).find(SITE, batch(1).tokens, 4), values(batch(1)))


def test_a_shard_of_another_capture_is_not_used(filled, tmp_path, caplog):
    one = PassStore(tmp_path / "other", "b", tmp_path)
    one.add(batch(9), 4, {SITE: values(batch(9))})
    one.flush()
    for suffix in (".json", ".safetensors"):
        file = tmp_path / "other" / SITE.name / f"000000{suffix}"
        file.rename(tmp_path / "folder" / SITE.name / f"000009{suffix}")
    assert store(filled).find(SITE, batch(9).tokens, 4) is None
    assert "another capture" in caplog.text
    assert (tmp_path / "folder" / SITE.name / "000009.safetensors").exists(), "it is somebody's"


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, {here!r})
from pathlib import Path
from test_store import *
from sae_bench.activations_cache import shards as module
one = store(Path({root!r}))
for seed in range(2):
    one.add(batch(seed), 4, {{SITE: values(batch(seed))}})
    if seed == 1:
        {last}
    one.flush()
"""

MOMENTS = {
    "before the description": "module.write_sealed = lambda *a: os.kill(os.getpid(), signal.SIGKILL)",
    "before the renaming": "module.sha256 = lambda *a: os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_killed_while_it_writes_leaves_whole_shards(tmp_path, moment):
    script = KILLED.format(here=str(Path(__file__).parent), root=str(tmp_path), last=MOMENTS[moment])
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    left = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
    assert len(left) > 3, "something torn is there"
    one = store(tmp_path)
    assert torch.equal(one.find(SITE, batch(0).tokens, 4), values(batch(0)))
    assert one.find(SITE, batch(1).tokens, 4) is None
    files = {path.name for path in (tmp_path / "folder").rglob("*") if path.is_file()}
    assert files == {".lock", "000000.json", "000000.safetensors"}


def test_two_that_capture_the_same_keep_it_once_and_read_each_other(tmp_path):
    one, two = store(tmp_path), store(tmp_path)
    for of in (one, two):
        of.add(batch(0), 4, {SITE: values(batch(0))})
    one.flush()
    two.add(batch(1), 4, {SITE: values(batch(1))})
    two.flush()
    assert sorted(path.name for path in shards(tmp_path)) == ["000000.safetensors", "000001.safetensors"]
    assert torch.equal(one.find(SITE, batch(1).tokens, 4), values(batch(1)))
    sizes = [sum(1 for _ in shard.passes) for shard in store(tmp_path)._seen.values()]
    assert sizes == [1, 1], "the second left out what the first had written"


def test_many_processes_at_once_lose_nothing(tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_store import *\n"
        f"one = store(Path({str(tmp_path)!r})); me = int(sys.argv[1])\n"
        "for seed in range(12):\n"
        "    one.add(batch(seed), 4, {SITE: values(batch(seed))}); one.add(batch(100 * me + seed), 4, "
        "{SITE: values(batch(100 * me + seed))}); one.flush()\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(me)]) for me in (1, 2)]
    assert [process.wait() for process in running] == [0, 0]
    one = store(tmp_path)
    for seed in [*range(12), *range(100, 112), *range(200, 212)]:
        assert torch.equal(one.find(SITE, batch(seed).tokens, 4), values(batch(seed)))
    assert sum(len(shard.passes) for shard in one._seen.values()) == 36


def test_where_there_is_no_room_left_nothing_more_is_kept(tmp_path, caplog):
    one = store(tmp_path, limit=2500)
    for seed in range(8):
        one.add(batch(seed), 4, {SITE: values(batch(seed))})
        one.flush()
    assert 0 < bytes_in(tmp_path) <= 2500 + 1000, "descriptions come on top"
    assert caplog.text.count("not kept") == 1
    assert torch.equal(one.find(SITE, batch(0).tokens, 4), values(batch(0)))
    assert one.find(SITE, batch(7).tokens, 4) is None


def test_a_disk_that_cannot_be_written_ends_the_keeping_and_not_the_run(tmp_path, monkeypatch, caplog):
    one = store(tmp_path)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae_bench.activations_cache.shards.save_file", fails)
    one.add(batch(0), 4, {SITE: values(batch(0))})
    one.flush()
    assert "No space left on device; what else is captured is not kept" in caplog.text
    assert not shards(tmp_path)


def test_memory_that_waits_to_be_written_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "SHARD_BYTES", 600)
    one = store(tmp_path)
    for seed in range(6):  # 288 bytes each
        one.add(batch(seed), 4, {SITE: values(batch(seed))})
    assert len(shards(tmp_path)) == 2


def test_sizes_are_whole_contexts_of_both_streams():
    need = Need.of({SITE}, {SITE, OTHER}, torch.bfloat16, tokens=100, held_out=30, context_size=11)
    # 10 and 3 contexts of 11; a token takes 2 bytes a dimension, and 8 for what it is and where it is from.
    assert need.by_site == {SITE: math.ceil(1.01 * 13 * 11 * (6 + 8)), OTHER: math.ceil(1.01 * 3 * 11 * (10 + 8))}


def test_too_small_a_limit_says_what_would_fit(tmp_path):
    need = Need.of({SITE}, {SITE}, torch.float32, tokens=1_000_000, held_out=1000, context_size=101)
    assert need.total == math.ceil(1.01 * 10_010 * 101 * 20)
    need.check(tmp_path, None, 21_000_000)
    with pytest.raises(
        UserError, match=r"--cache-limit 10MB: .* take 20.42MB; --tokens 489100 would fit, raise it to 20.43MB"
    ):
        need.check(tmp_path, None, 10_000_000)
    fits = Need.of({SITE}, {SITE}, torch.float32, tokens=489_100, held_out=1000, context_size=101)
    fits.check(tmp_path, None, 10_000_000)
    with pytest.raises(UserError, match="not even one context would fit"):
        need.check(tmp_path, None, 1000)


def test_what_is_there_of_the_run_need_not_be_found_room_for(filled):
    folder, there = filled / "folder", bytes_in(filled)
    need = Need({SITE: there}, 100, 0, 11)
    own = bytes_in(folder / SITE.name)
    need.check(filled, folder, 2 * there - own)
    with pytest.raises(UserError, match="holds"):
        need.check(filled, None, 2 * there - own)


def test_a_full_disk_is_an_error_before_anything_begins(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_bench.activations_cache.sizes.SPARE_BYTES", 1 << 60)
    with pytest.raises(UserError, match="make room, or choose another folder"):
        Need({SITE: 1000}, 100, 0, 11).check(tmp_path / "new", None, None)


def test_sizes_in_words():
    assert [in_words(n) for n in (900, 12_345_678, 3_200_000_000)] == ["1kB", "12.35MB", "3.2GB"]
    assert in_words(12_340_001, up=True) == "12.35MB"


def test_nothing_is_said_where_nothing_is_wrong(filled, caplog):
    with caplog.at_level(logging.WARNING):
        store(filled).find(SITE, batch(1).tokens, 4)
    assert not caplog.text
    assert os.listdir(filled) == ["folder"]


@pytest.mark.parametrize("content", [{}, {"identity": 3}, {"identity": {"model": "tiny"}, "buffers_sha256": "ab"}])
def test_a_manifest_that_is_sealed_and_says_something_else_is_damaged(tmp_path, content):
    identity = {"model": "tiny"}
    write_sealed(folder_of(tmp_path, identity) / "manifest.json", content)
    with pytest.raises(UserError, match=r"manifest\.json is not what was written"):
        known_hashes(tmp_path, identity)
