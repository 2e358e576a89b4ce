"""A run that reads its activations makes the same SAEs and records as one that captures them, to the last bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command import bench, flags
from test_end_to_end import records_of, weights_of, without_times
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from sae_bench.activations_cache import store
from sae_bench.lm.model import LanguageModel
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.runs import sources
from sae_bench.training import trainer as trainer_module


class Killed(BaseException):
    """What kill -9 leaves: nothing is written any more."""


TASKS = ("reconstruction", "feature_density")
"""Tasks that splice nothing."""


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    """A half of the buffer has some passes, a pass has 128 contexts, and neither divides the tokens."""
    return {
        "--l0": 6, "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 48, "--tokens": 9000,
        "--reuse": 2, "--batch-size": 300, "--buffer-tokens": 5000, "--eval-tokens": 800, "--context-size": 32,
        "--tasks": TASKS, "--checkpoint-every": 10,
    }  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SHARD_BYTES", 100_000)
        yield


@pytest.fixture(scope="module")
def live(settings, at_work):
    """What a run without a cache makes."""
    return {arch: content(run(settings, at_work / f"live-{arch}", arch=arch)) for arch in ("topk", "gated")}


@pytest.fixture(scope="module")
def filled(settings, at_work):
    """A run that filled a cache, and the cache."""
    cache = at_work / "cache"
    return run(settings, at_work / "first", arch="topk", activations_cache=cache), cache


@pytest.fixture
def cache(filled, tmp_path):
    """A copy of the cache."""
    shutil.copytree(filled[1], tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def passes(monkeypatch):
    """The sites of every pass of the language model, and its name whenever it is loaded."""
    seen, capture, load = [], LanguageModel.capture, sources.load_language_model
    monkeypatch.setattr(
        LanguageModel,
        "capture",
        lambda self, tokens, sites, **how: (seen.append(len(tokens)), capture(self, tokens, sites, **how))[1],
    )
    monkeypatch.setattr(
        sources, "load_language_model", lambda *given, **how: (seen.append("loaded"), load(*given, **how))[1]
    )
    return seen


def run(settings: dict, out: Path, **more: object) -> Path:
    changed = {f"--{name.replace('_', '-')}": value for name, value in more.items()}
    assert bench(*flags(settings | {"--out": out} | changed), "--quiet") == 0
    return out


def content(run: Path) -> dict[str, object]:
    """Weights, logs and records of a run, but for times and for where activations were kept."""
    records = {}
    for name, record in records_of(run).items():
        record = records[name] = without_times(record)
        for part in (record["provenance"], record["sae"]["training"]):
            part.pop("activations", None)
    logs = {path.parent.name: path.read_text() for path in run.glob("saes/*/metrics.jsonl")}
    return {"weights": weights_of(run), "logs": logs, "records": records}


def test_the_first_run_and_the_later_ones_make_what_a_live_model_makes(settings, live, filled, cache, tmp_path, passes):
    first, _ = filled
    assert content(first) == live["topk"]
    assert len(list(cache.rglob("*.safetensors"))) > 3
    assert content(run(settings, tmp_path / "again", arch="topk", activations_cache=cache)) == live["topk"]
    assert content(run(settings, tmp_path / "other", arch="gated", activations_cache=cache)) == live["gated"]
    assert passes == [], "the language model was neither loaded nor run"
    records = [*records_of(first).values(), *records_of(tmp_path / "other").values()]
    said = {record[part]["activations"] for record in records for part in ("provenance",)}
    said |= {record["sae"]["training"]["activations"] for record in records}
    assert len(said) == 1
    assert said.pop().startswith("cache ")


def test_a_splicing_task_loads_the_model_and_training_still_does_not_run_it(settings, cache, tmp_path, passes):
    both = settings | {"--tasks": ("reconstruction", "delta_lm_loss"), "--arch": "topk"}
    live = content(run(both, tmp_path / "live"))
    passes.clear()
    assert content(run(both, tmp_path / "second", activations_cache=cache)) == live
    assert passes == ["loaded"], "clean passes and replays are no captures"


def test_a_run_goes_on_from_its_checkpoint_by_the_cache(settings, live, cache, tmp_path, passes, monkeypatch):
    step, done = trainer_module.SAETrainer.step, []

    def killed(self, *given, **how):
        done.append(1)
        if len(done) > 37:
            raise Killed
        step(self, *given, **how)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.SAETrainer, "step", killed)
        with pytest.raises(Killed):
            run(settings, tmp_path / "run", arch="gated", activations_cache=cache)
    assert content(run(settings, tmp_path / "run", arch="gated", activations_cache=cache)) == live["gated"]
    assert passes == []


def test_a_run_killed_while_it_captures_leaves_what_the_next_goes_on_from(
    settings, live, tmp_path, passes, monkeypatch
):
    cache, flush, n_flushed = tmp_path / "cache", store.PassStore.flush, []

    def killed(self):
        if n_flushed:
            raise Killed
        n_flushed.append(1)
        flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(store.PassStore, "flush", killed)
        with pytest.raises(Killed):
            run(settings, tmp_path / "run", arch="topk", activations_cache=cache)
    assert len(list(cache.rglob("*.safetensors"))) == 1
    passes.clear()
    assert content(run(settings, tmp_path / "run", arch="topk", activations_cache=cache)) == live["topk"]
    assert passes == ["loaded", 128, 128, 16, 10], "of the three passes to train on the first is there"


@pytest.mark.parametrize("tokens", [4500, 12_500])
def test_a_cache_serves_fewer_tokens_and_is_extended_to_more(settings, cache, tmp_path, passes, tokens):
    live = content(run(settings, tmp_path / "live", arch="topk", tokens=tokens))
    passes.clear()
    assert content(run(settings, tmp_path / "other", arch="topk", tokens=tokens, activations_cache=cache)) == live
    if tokens == 4500:
        assert passes == []
    else:
        assert passes == ["loaded", 128, 128], "the pass in which the first run ended, and the one after it"
        passes.clear()
        run(settings, tmp_path / "again", arch="gated", tokens=tokens, activations_cache=cache)
        assert passes == []


def test_sites_that_are_missing_are_captured_and_the_others_read(settings, cache, tmp_path, passes):
    both = settings | {"--arch": "topk", "--site": ("resid_post", "mlp_out")}
    live = content(run(both, tmp_path / "live"))
    assert content(run(both, tmp_path / "both", activations_cache=cache)) == live
    passes.clear()
    alone = content(run(both, tmp_path / "mlp", site="mlp_out", arch="topk", activations_cache=cache))
    assert passes == []
    assert set(alone["weights"].items()) < set(live["weights"].items())


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_shard_is_captured_anew_and_said(settings, live, cache, tmp_path, passes, caplog, damage):
    shard = sorted(cache.rglob("*.safetensors"))[0]
    bytes_ = bytearray(shard.read_bytes())
    bytes_[-9] ^= 4
    shard.write_bytes(bytes_ if damage == "flipped" else bytes_[:-16])
    passes.clear()
    assert content(run(settings, tmp_path / "other", arch="topk", activations_cache=cache)) == live["topk"]
    assert "captured anew" in caplog.text
    assert passes[0] == "loaded"
    passes.clear()
    assert content(run(settings, tmp_path / "third", arch="topk", activations_cache=cache)) == live["topk"]
    assert passes == [], "it is whole again"


def test_activations_of_another_model_corpus_dtype_or_context_are_never_served(
    settings, corpus, cache, tmp_path, passes, capsys
):
    model = save_tiny(tmp_path / "model" / Path(settings["--model"]).name)
    changed = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight[0, 0] += 1e-3
    changed.save_pretrained(model)
    text = tmp_path / "other.jsonl"
    text.write_text("\n".join(reversed(Path(corpus).read_text().splitlines()[5:])))
    foreign = {"--model": model, "--dataset": text, "--dtype": "bfloat16", "--context-size": 30}
    few = {"--tokens": 900, "--eval-tokens": 300, "--arch": "topk", "--activations-cache": cache}
    for number, (flag, value) in enumerate(foreign.items()):
        passes.clear()
        assert bench(*flags(settings | few | {flag: value, "--out": tmp_path / f"{number}"})) == 0
        assert passes[0] == "loaded"
        assert {128 if flag != "--context-size" else 136} < {*passes}, "all was captured"
        assert f"nothing of this run in {cache} (the nearest there differs: " in capsys.readouterr().err
    passes.clear()
    run(settings, tmp_path / "last", arch="gated", activations_cache=cache)
    assert passes == [], "the first one's are as they were"


def test_a_corpus_that_changed_behind_its_name_is_captured_anew(settings, corpus, tmp_path, passes):
    text, cache = tmp_path / "text.jsonl", tmp_path / "cache"
    lines = Path(corpus).read_text().splitlines()
    text.write_text("\n".join(lines))
    mine = settings | {"--dataset": text, "--arch": "topk"}
    run(mine, tmp_path / "first", activations_cache=cache)
    text.write_text("\n".join(line.replace("the", "a") for line in lines))
    live = content(run(mine, tmp_path / "live"))
    assert content(run(mine, tmp_path / "second", activations_cache=cache)) == live


def test_a_manifest_that_was_changed_is_refused(settings, cache, tmp_path, capsys):
    (manifest,) = cache.glob("*/manifest.json")
    about = json.loads(manifest.read_text())
    assert about["identity"]["context_size"] == 32
    manifest.write_text(manifest.read_text().replace('"context_size": 32', '"context_size": 33'))
    assert bench(*flags(settings | {"--arch": "topk", "--out": tmp_path / "x", "--activations-cache": cache})) == 2
    assert "not what was written" in capsys.readouterr().err


def test_weights_other_than_those_of_the_manifest_are_refused(settings, cache, tmp_path, capsys):
    (manifest,) = cache.glob("*/manifest.json")
    write_sealed(manifest, read_sealed(manifest) | {"model_sha256": "0" * 64})
    mine = settings | {"--arch": "topk", "--tasks": "delta_lm_loss", "--activations-cache": cache}
    assert bench(*flags(mine | {"--out": tmp_path / "x"})) == 2
    assert "has other weights than when" in capsys.readouterr().err


def test_too_small_a_limit_is_an_error_before_anything_begins(settings, tmp_path, passes, capsys):
    cache = tmp_path / "cache"
    mine = settings | {"--arch": "topk", "--out": tmp_path / "run", "--activations-cache": cache}
    assert bench(*flags(mine | {"--cache-limit": "1MB"})) == 2
    error = capsys.readouterr().err
    assert "--cache-limit 1MB: this run's activations take 1.39MB" in error
    assert "--tokens" in error
    assert passes == []
    assert not cache.exists()
    assert not (tmp_path / "run" / "run.json").exists()
    assert bench(*flags(mine | {"--cache-limit": "1MB"}), "--dry-run") == 2
    capsys.readouterr()
    assert bench(*flags(mine), "--dry-run") == 0
    assert "cache      about 1.4MB in" in capsys.readouterr().out
    assert not cache.exists()


def test_wrong_words_are_errors_of_one_line(settings, tmp_path, capsys):
    mine = settings | {"--arch": "topk", "--out": tmp_path / "run"}
    (tmp_path / "file").touch()
    for wrong, said in (
        ({"--cache-limit": "1GB"}, "--cache-limit bounds --activations-cache"),
        ({"--activations-cache": tmp_path, "--cache-limit": "lots"}, "no size: write 200GB"),
        ({"--activations-cache": tmp_path, "--cache-limit": "0"}, "--cache-limit: should be greater than 0"),
        ({"--activations-cache": tmp_path / "file"}, "is a file: name a folder"),
    ):
        assert bench(*flags(mine | wrong)) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1


def test_where_it_is_kept_does_not_change_what_a_run_is(settings, tmp_path):
    out = run(settings, tmp_path / "run", arch="topk")
    before = content(out)
    shutil.rmtree(out / "records")
    assert content(run(settings, out, arch="topk", activations_cache=cache)) == before, "the same run"
    assert str(tmp_path / "cache") not in "".join(path.read_text() for path in out.glob("records/*"))
