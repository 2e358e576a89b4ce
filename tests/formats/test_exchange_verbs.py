"""`convert`, `export` and `publish` on a real run: what they write, what they refuse, and what the card says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from command import bench, flags
from safetensors.torch import load_file
from synthetic import record, typed
from tiny import D_MODEL

from sae_bench import ARCHITECTURES, SAEConfig
from sae_bench.errors import UserError
from sae_bench.formats.saebench import core_result
from sae_bench.records.files import read_sealed
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.publish import card, collect
from sae_bench.saes.save import load_sae

ARCHS = ("gated", "jumprelu", "relu", "topk")


@pytest.fixture(scope="module")
def run(gemma2_folder, corpus, at_work) -> Path:
    out = at_work / "run"
    settings = {
        "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 64, "--tokens": 1000, "--reuse": 2,
        "--batch-size": 200, "--eval-tokens": 400, "--context-size": 32, "--arch": ARCHS, "--l0": 6, "--out": out,
        "--emit": "saebench",
    }  # fmt: skip
    assert bench(*flags(settings), "--quiet") == 0
    return out


def test_convert_measures_what_it_costs_and_its_results_are_saes(run, tmp_path, capsys):
    assert bench("convert", run, "--to", "jumprelu", "--out", tmp_path / "out", "--quiet") == 0
    out = capsys.readouterr().out
    content = read_sealed(tmp_path / "out" / "conversion.json")
    costs = {cost["from"].split(".")[0]: cost for cost in content["costs"]}
    assert set(costs) == {"gated", "relu", "topk"}
    for arch in ("gated", "relu"):
        for metric, before in costs[arch]["before"].items():
            assert costs[arch]["after"][metric]["value"] == pytest.approx(before["value"], abs=1e-4)
    assert costs["topk"]["before"]["l0"]["value"] == 6
    assert costs["topk"]["after"]["l0"]["value"] == pytest.approx(6, rel=0.2)
    assert f"{costs['topk']['after']['fve']['value']:.4f}" in out
    saes = sorted((tmp_path / "out" / "saes").iterdir())
    assert {load_sae(path).name for path in saes} == {"jumprelu"}
    assert bench("export", tmp_path / "out", "--format", "gemma-scope", "--out", tmp_path / "g") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    again = bench("convert", run, "--to", "gated", "--out", tmp_path / "out")
    assert again == 2
    assert "is not empty" in capsys.readouterr().err


def test_export_writes_the_saes_that_are_asked_for(run, tmp_path, capsys):
    (jumprelu,) = (path.name for path in run.glob("saes/jumprelu*"))
    command = ("export", run, "--format", "gemma-scope", "--out", tmp_path / "g")
    assert bench(*command) == 2
    assert "does not fit" in capsys.readouterr().err
    assert bench(*command, "--sae", jumprelu) == 0
    (path,) = tmp_path.rglob("params.npz")
    score = json.loads((run / "records" / f"{jumprelu}.reconstruction.json").read_text())["scores"]["l0"]["value"]
    assert path.relative_to(tmp_path / "g").parts[1:-1] == ("layer_1", "width_64", f"average_l0_{round(score)}")
    assert bench(*command, "--sae", "jumprelo") == 2
    assert 'has no SAE "jumprelo"' in capsys.readouterr().err


def test_publish_uploads_whole_files_a_board_and_a_card(run, monkeypatch, capsys):
    sent = {}

    class FakeApi:
        def create_repo(self, repo, *, private, exist_ok):
            sent["repo"] = (repo, private, exist_ok)

        def create_commit(self, repo, *, operations, commit_message):
            sent["files"] = {operation.path_in_repo: operation for operation in operations}
            return type("Commit", (), {"commit_url": f"hub/{repo}/commit/1"})()

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    assert bench("publish", run, "--repo", "me/saes", "--dry-run") == 0
    assert sent == {}
    planned = capsys.readouterr().out
    assert bench("publish", run, "--repo", "me/saes", "--private") == 0
    assert capsys.readouterr().out == "hub/me/saes/commit/1\n"
    assert sent["repo"] == ("me/saes", True, True)
    names = set(sent["files"])
    assert all(f"  {name}" in planned for name in names)
    on_disk = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names - {"README.md"} == {
        name for name in on_disk if not name.startswith(("checkpoints", "saebench", "tensorboard", ".", "drawn"))
    }
    card = sent["files"]["README.md"].path_or_fileobj.decode()
    assert card.startswith("---\nlibrary_name: saelens\n")
    assert "| architecture" in card
    assert "SAE.load_from_disk" in card


def test_what_nobody_sealed_is_not_published_and_names_are_harmless_in_the_card(run, tmp_path, capsys):
    own = shutil.copytree(run, tmp_path / "run")
    sae = next(own.glob("saes/topk*"))
    (sae / "notes.txt").write_text("private")
    (own / "records" / "patients.csv").write_text("private")
    (own / "leaderboard.md").write_text("edited")
    published = collect(own, "me/saes")
    assert not [name for name in published if "notes" in name or "patients" in name]
    assert published["leaderboard.md"] == (run / "leaderboard.md").read_bytes()
    model = 'own/x"\n---\n[a](javascript:b) `c`: *d*'
    made = [(one, one.provenance.model_copy(update={"model": model})) for one in RunFolder(own).records()]
    text = card([one.model_copy(update={"provenance": about}) for one, about in made], "me/saes")
    front, _, rest = text.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["base_model"] == model
    assert "[a](" not in rest.partition("    from sae_lens")[0]
    assert "\n[a](" not in text, "it begins no line"
    (sae / "cfg.json").rename(tmp_path / "cfg.json")
    (sae / "cfg.json").symlink_to(tmp_path / "cfg.json")
    assert bench("publish", own, "--repo", "me/saes", "--dry-run") == 2
    assert "cfg.json is a link, or behind one" in capsys.readouterr().err


def test_a_damaged_or_unfinished_run_is_not_published(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    path = next(iter(tmp_path.glob("run/saes/topk*/sae_weights.safetensors")))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert bench("publish", tmp_path / "run", "--repo", "me/saes", "--dry-run") == 2
    assert "damaged" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "records")
    assert bench("publish", tmp_path / "run", "--repo", "me/saes", "--dry-run") == 2
    assert "holds no board" in capsys.readouterr().err


def test_a_record_that_does_not_say_when_it_was_made_gives_no_file_of_saebench():
    content = record("topk", 32.0, 0, "reconstruction")
    del content["provenance"]["time"]
    (one,) = typed([content])
    with pytest.raises(UserError, match=r"records of mine do not say when .* delete them and run the same command"):
        core_result("mine", {"reconstruction": one}, ARCHITECTURES["topk"](SAEConfig(d_in=8, d_sae=16, l0=2)))


def test_saebench_files_hold_its_definitions_under_its_names_and_ours_beside(run):
    paths = sorted((run / "saebench").iterdir())
    assert len(paths) == len(ARCHS)
    for path in paths:
        content = json.loads(path.read_text())
        sae_id = path.name.removesuffix("_custom_sae_eval_results.json")
        record = json.loads((run / "records" / f"{sae_id}.reconstruction.json").read_text())
        core = json.loads((run / "records" / f"{sae_id}.saebench_core.json").read_text())
        sums, totals = record["by_document"], {name: sum(of) for name, of in core["by_document"].items()}
        n, error = sum(sums["tokens"]), sum(sums["squared_error"])
        quality = content["eval_result_metrics"]["reconstruction_quality"]
        squares = totals["norm_squared"] / n
        assert quality["explained_variance"] == pytest.approx(1 - error / n / (squares - (squares / D_MODEL) ** 2))
        assert quality["explained_variance_legacy"] == core["scores"]["explained_variance_legacy"]["value"]
        assert quality["mse"] == pytest.approx(error / n / n)
        shrinkage = content["eval_result_metrics"]["shrinkage"]
        assert shrinkage["l2_norm_in"] == pytest.approx(totals["norm"] / n)
        assert content["eval_result_metrics"]["sparsity"]["l0"] == record["scores"]["l0"]["value"]
        own = content["eval_result_unstructured"]["sae_arch_bench"]
        assert own["fve"] == record["scores"]["fve"]["value"]
        assert content["eval_result_metrics"]["model_behavior_preservation"]["kl_div_with_ablation"] == -1
        details = content["eval_result_details"]
        assert [latent["index"] for latent in details] == list(range(64))
        weights = load_file(run / "saes" / sae_id / "sae_weights.safetensors")
        W = torch.nn.functional.normalize(weights["W_dec"], dim=1)
        nearest = (W @ W.T - 9 * torch.eye(64)).amax(1)
        assert [latent["max_decoder_cosine_sim"] for latent in details] == pytest.approx(nearest.tolist(), abs=1e-5)
