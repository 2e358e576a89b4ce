"""Neuronpedia's bundle: rows that its importer takes, with what was collected of the latents."""

import gzip
import json

import pytest
from command import bench, files
from synthetic import latent, records, seal, write_run

NAME = "topk.layer_9.resid_post.w512.l0_16.seed0"
PLACE = "gemma-3-270m/9-topk-res-512-l0-16-s0"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), records(("topk", "relu"), (16.0,)), n_latents=5)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert bench("export", run, "--format", "neuronpedia", "--out", out, "--sae", NAME) == 0
    return out


def rows(path):
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def test_a_bundle_has_the_documented_layout_and_the_same_bytes_every_time(run, bundle, tmp_path):
    about = {f"{PLACE}/{name}.jsonl" for name in ("model", "release", "source", "sourceset")}
    parts = {f"{PLACE}/{name}/batch-0.jsonl.gz" for name in ("features", "activations", "explanations")}
    assert set(files(bundle)) == about | parts
    assert bench("export", run, "--format", "neuronpedia", "--out", tmp_path, "--sae", NAME) == 0
    assert files(tmp_path) == files(bundle)


def test_rows_refer_to_each_other_and_all_of_a_file_have_the_columns_of_its_first(bundle):
    """The importer takes a table's columns from the first line."""
    folder = bundle / PLACE
    (model,), (source,), (of,), (release,) = (
        rows(folder / f"{name}.jsonl") for name in ("model", "source", "sourceset", "release")
    )
    assert (source["modelId"], source["setName"], of["releaseName"]) == (model["id"], of["name"], release["name"])
    assert (model["id"], source["id"]) == tuple(PLACE.split("/"))
    for name in ("features", "activations", "explanations"):
        found = rows(folder / name / "batch-0.jsonl.gz")
        assert all(list(row) == list(found[0]) for row in found)
        assert {(row["modelId"], row["layer"]) for row in found} == {(model["id"], source["id"])}
    ids = [row["id"] for name in ("activations", "explanations") for row in rows(folder / name / "batch-0.jsonl.gz")]
    assert len(set(ids)) == len(ids)


def test_a_latent_is_what_was_collected_of_it(bundle):
    given = latent(NAME, 5)
    feature = next(row for row in rows(bundle / PLACE / "features/batch-0.jsonl.gz") if row["index"] == "5")
    assert feature["frac_nonzero"] == given["n_fired"] / 100_000
    assert feature["pos_str"] == [f" w{i}" for i in range(10)]
    assert feature["neg_values"][0] == -1.5
    assert feature["freq_hist_data_bar_values"] == [1.0, 3.0, 5.0, 7.0], "the middle of every bar"
    assert feature["hookName"] == "blocks.9.hook_resid_post"
    fires = [row for row in rows(bundle / PLACE / "activations/batch-0.jsonl.gz") if row["index"] == "5"]
    firing = [one for one in given["examples"] if one["kind"] in ("top", "decile")]
    assert [row["values"] for row in fires] == [one["activations"] for one in firing], "no silent excerpt"
    for row, one in zip(fires, firing, strict=True):
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(one["activations"])
        assert row["binContains"] == (-1 if one["kind"] == "top" else 0.1)
        assert row["binMin"] <= row["maxValue"] <= row["binMax"]
    explained = rows(bundle / PLACE / "explanations/batch-0.jsonl.gz")
    assert [row["index"] for row in explained] == ["0", "5", "10", "20"], "the fourth has none"
    assert explained[1]["description"] == given["explanation"]
    assert explained[1]["notes"].startswith("by a judge; detection 0.")


def test_a_batch_ends_where_theirs_do(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_bench.formats.neuronpedia.BATCH", 2)
    run = write_run(tmp_path / "run", records(("topk",), (16.0,), (0,)), n_latents=5)
    assert bench("export", run, "--format", "neuronpedia", "--out", tmp_path / "out") == 0
    batches = sorted((tmp_path / "out" / PLACE / "features").iterdir())
    assert [[row["index"] for row in rows(path)] for path in batches] == [["0", "5"], ["10", "15"], ["20"]]


def test_what_cannot_be_exported_is_one_line(tmp_path, run, capsys):
    def refused(where, *arguments):
        assert bench("export", where, "--format", "neuronpedia", "--out", tmp_path / "out", *arguments) == 2
        return capsys.readouterr().err

    bare = write_run(tmp_path / "bare", records(("topk",), (16.0,)))
    assert "holds no latents: run the same command again with --latents 100" in refused(bare)
    assert "has no collected latents" in refused(bare, "--sae", NAME)
    assert "did you mean" in refused(run, "--sae", NAME[:-1] + "7")
    assert "no records" in refused(tmp_path / "nothing")
    odd = records(("topk",), (16.0,), (0,))
    for record in odd:
        record["sae"]["site"] |= {"layer": None, "name": "embed"}
    assert "which has no layer" in refused(write_run(tmp_path / "odd", odd, n_latents=1))
    assert not (tmp_path / "out").exists()


def test_a_zero_byte_in_a_token_is_not_written(tmp_path):
    run = write_run(tmp_path / "run", records(("topk",), (16.0,), (0,)))
    content = latent(NAME, 5)
    content["examples"][0]["tokens"][0] = "a\0b"
    seal(run / "latents" / NAME / "5.json", content)
    assert bench("export", run, "--format", "neuronpedia", "--out", tmp_path / "out") == 0
    (first, *_) = rows(tmp_path / "out" / PLACE / "activations/batch-0.jsonl.gz")
    assert first["tokens"][0] == "a\ufffdb"
