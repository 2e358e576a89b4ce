"""The main job on tiny language models: what it leaves behind, that it can be trusted, stopped and asked again."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from command import bench, files, flags
from safetensors.torch import load_file
from tiny import D_MODEL, HEADS_WIDTH

from sae_bench import ARCHITECTURES
from sae_bench.registry import known_architectures
from sae_bench.saes.save import load_sae

ARCHS = ("gated", "jumprelu", "relu", "topk")
OF_WEIGHTS = ("c_dec", "max_decoder_cosine", "antipodal_share")
"""Metrics that no token is behind."""
EVERY = known_architectures(controls=False)
WIDTHS = {"resid_post": D_MODEL, "mlp_out": D_MODEL, "attn_out": HEADS_WIDTH}


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    return {
        "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 64, "--tokens": 2000, "--reuse": 4,
        "--batch-size": 200, "--eval-tokens": 600, "--context-size": 32,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(settings, at_work) -> Path:
    """All architectures at two L0s; tests that change it work on a copy."""
    out = at_work / "finished"
    assert bench(*flags(settings | {"--arch": "all", "--l0": (12, 4), "--out": out}), "--quiet") == 0
    return out


@pytest.fixture
def again(finished, settings, tmp_path):
    """A copy of the finished run, and its command."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run", [*flags(settings | {"--arch": "all", "--l0": (12, 4), "--out": tmp_path / "run"})]


def records_of(run: Path) -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in (run / "records").iterdir()}


def without_times(record: dict) -> dict:
    training = {key: value for key, value in record["sae"]["training"].items() if key != "seconds"}
    times = ("time", "evaluation_seconds")
    provenance = {key: value for key, value in record["provenance"].items() if key not in times}
    rest = {key: value for key, value in record.items() if key != "seal"}
    return rest | {"sae": record["sae"] | {"training": training}, "provenance": provenance}


def weights_of(run: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in run.glob("saes/*/sae_weights.safetensors")}


def mtimes(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for part in ("saes", "records", "run.json") for path in _below(run / part)}


def _below(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def test_three_sites_of_a_gemma_get_their_own_widths(settings, tmp_path):
    sites = {
        "--arch": "jumprelu",
        "--site": ("attn_out", "mlp_out", "resid_post"),
        "--l0": 8,
        "--out": tmp_path / "run",
    }
    assert bench(*flags(settings | sites), "--quiet") == 0
    found = {record["sae"]["site"]["kind"]: record for record in records_of(tmp_path / "run").values()}
    assert {kind: record["sae"]["d_in"] for kind, record in found.items()} == WIDTHS
    assert found["attn_out"]["sae"]["site"]["path"] == "model.layers.1.self_attn.o_proj"
    assert found["attn_out"]["sae"]["site"]["side"] == "input"
    hooks = {
        json.loads(path.read_text())["metadata"]["hook_name"]: tuple(load_file(path.with_name(WEIGHTS))["W_enc"].shape)
        for path in tmp_path.glob("run/saes/*/cfg.json")
    }
    assert hooks == {
        "blocks.1.attn.hook_z": (HEADS_WIDTH, 64),
        "blocks.1.hook_mlp_out": (D_MODEL, 64),
        "blocks.1.hook_resid_post": (D_MODEL, 64),
    }


def test_the_same_seed_gives_the_same_bits(settings, tmp_path):
    command = settings | {"--arch": "all", "--l0": 6, "--seed": 5}
    for run in ("one", "two"):
        assert bench(*flags(command | {"--out": tmp_path / run}), "--quiet") == 0
    assert bench(*flags(command | {"--out": tmp_path / "other", "--seed": 6}), "--quiet") == 0
    one, two, other = (weights_of(tmp_path / run) for run in ("one", "two", "other"))
    assert len(one) == len(EVERY)
    assert one == two
    assert not set(one.values()) & set(other.values())
    first, second = records_of(tmp_path / "one"), records_of(tmp_path / "two")
    assert {name: without_times(record) for name, record in first.items()} == {
        name: without_times(record) for name, record in second.items()
    }


def test_the_board_has_a_row_for_every_sae_the_front_first_and_the_others_by_architecture_and_l0(finished):
    lines = (finished / "leaderboard.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    header, body = rows[0], rows[2:]
    assert header[:4] == ["architecture", "target", "mark", "l0"]
    assert {"delta_lm_loss ↓", "fve ↑", "loss_recovered_mean ↑", "kl ↓", "gamma_centred"} <= set(header)
    assert {(row[0], row[1]) for row in body} == {(arch, target) for arch in EVERY for target in ("4", "12")}
    assert len(body) == 2 * len(EVERY)
    l0 = [float(row[3].split(" ± ")[0]) for row in body]
    n_front = sum("&#42;" in row[2] for row in body)
    assert ["&#42;" in row[2] for row in body] == [True] * n_front + [False] * (len(body) - n_front)
    assert l0[:n_front] == sorted(l0[:n_front])
    others = [(row[0], at) for row, at in zip(body, l0, strict=True)][n_front:]
    assert others == sorted(others)
    topk = sorted(at for row, at in zip(body, l0, strict=True) if row[0] == "topk")
    assert topk == pytest.approx([4, 12], abs=0.3)


def test_the_three_tables_tell_the_same(finished):
    with open(finished / "leaderboard.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    records = records_of(finished)
    assert len(rows) == sum(len(record["metrics"]) for record in records.values())
    for row in rows:
        if row["task"] == "autointerp":
            assert (row["value"], row["note"]) == ("", "no judge")
            continue
        score = records[f"{row['sae']}.{row['task']}.json"]["scores"][row["metric"]]
        assert (float(row["value"]) if row["value"] else None) == score["value"]
        assert int(row["n"]) == score["n"]
    tex = (finished / "leaderboard.tex").read_text()
    assert re.search(r"delta\\_lm\\_ .*\n.* loss \$\\downarrow\$", tex), "a head on two lines"
    bodies = re.findall(r"\\midrule\n(.*?)\\bottomrule", tex, re.DOTALL)
    assert len(bodies) > 1
    assert {body.count(r" \\") for body in bodies} == {2 * len(EVERY)}


def test_every_number_of_a_record_comes_with_its_error_count_and_version(finished):
    for record in records_of(finished).values():
        assert set(record["scores"]) == set(record["metrics"])
        for name, score in record["scores"].items() if record["task"] != "autointerp" else ():
            if score["value"] is None:
                assert score["note"], name
                continue
            assert score["stderr"] is not None, name
            assert score["n"] == 0 if name in OF_WEIGHTS else score["n"] > 500, name
        assert record["task_version"]
        provenance = record["provenance"]
        assert len(provenance["eval_fingerprint"]) == len(record["sae"]["training"]["fingerprint"]) == 64
        assert {"torch", "transformers", "sae-arch-bench"} <= set(provenance["versions"])
        assert provenance["config"]["tokens"] == 2000
        assert "/" not in provenance["device"]


def test_all_saes_saw_the_same_number_of_steps_and_tokens(finished):
    trainings = [record["sae"]["training"] for record in records_of(finished).values()]
    assert {(training["n_steps"], training["tokens_seen"]) for training in trainings} == {(40, 8000)}
    assert len({training["fingerprint"] for training in trainings}) == 1


def test_the_same_command_again_trains_nothing_and_touches_nothing(again, monkeypatch):
    run, command = again
    before, contents = mtimes(run), files(run)
    monkeypatch.setattr("sae_bench.runs.cell.TrainStage", None)
    monkeypatch.setattr("sae_bench.runs.cell.evaluate", None)
    assert bench(*command, "--quiet") == 0
    assert mtimes(run) == before
    assert files(run) == contents


def test_a_deleted_record_alone_is_made_again(again):
    run, command = again
    record = next(iter(sorted((run / "records").glob("jumprelu*.reconstruction.json"))))
    saved = json.loads(record.read_text())
    record.unlink()
    before = mtimes(run)
    assert bench(*command, "--quiet") == 0
    after = mtimes(run)
    assert {path for path in after if after[path] != before.get(path)} == {record}
    assert without_times(json.loads(record.read_text())) == without_times(saved)


def test_a_run_that_was_killed_goes_on_with_what_is_missing(again):
    run, command = again
    killed = next(iter(sorted((run / "saes").glob("topk*"))))
    weights = weights_of(run)
    (killed / "sae_bench.json").unlink()  # written last: the SAE counts as unfinished
    for record in (run / "records").glob("topk*"):
        record.unlink()
    before = mtimes(run)
    assert bench(*command, "--quiet") == 0
    after = mtimes(run)
    changed = {path.parent.name for path in after if after[path] != before.get(path)} - {"records"}
    assert changed - {run.name} == {killed.name}
    assert weights_of(run) == weights, "trained alone it comes out as in company"


def test_other_settings_in_the_same_folder_are_refused_with_the_difference(again, capsys):
    run, command = again
    before = files(run)
    assert bench(*[2400 if part == 2000 else part for part in command], "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "(--tokens 2000, not 2400)" in line
    assert files(run) == before


def test_damaged_files_count_as_missing(again, caplog):
    """The checkpoint at the training's end gives the very weights back."""
    run, command = again
    saved, weights = records_of(run), weights_of(run)
    path = next(iter(sorted(run.glob("saes/relu*/sae_weights.safetensors"))))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    record = next(iter(sorted((run / "records").glob("topk*"))))
    record.write_text(record.read_text().replace("0.", "1.", 1))
    assert bench(*command, "--quiet") == 0
    assert {path, record} <= {message.args[0] for message in caplog.records if "damaged" in message.msg}
    assert weights_of(run) == weights
    assert {name: without_times(made) for name, made in records_of(run).items()} == {
        name: without_times(made) for name, made in saved.items()
    }


def test_runs_are_tabulated_together_unless_they_measured_on_different_tokens(finished, settings, tmp_path, capsys):
    for name, changed in (("same", {}), ("fewer", {"--eval-tokens": 400})):
        command = settings | changed | {"--arch": "topk", "--l0": 7, "--out": tmp_path / name}
        assert bench(*flags(command), "--quiet") == 0
    capsys.readouterr()
    assert bench("table", finished, tmp_path / "same") == 0
    assert sum(line.startswith("topk") for line in capsys.readouterr().out.splitlines()) == 3
    assert bench("table", finished, tmp_path / "fewer") == 2
    assert "different evaluation tokens" in capsys.readouterr().err
    assert bench("table", finished, tmp_path / "fewer", "--mix") == 0
    mixed = capsys.readouterr().out
    assert sum(line.startswith("topk") for line in mixed.splitlines()) == 3
    assert "MIXED: these rows were made with different evaluation tokens; do not compare them" in mixed


def test_a_preset_that_has_changed_is_not_taken_for_the_one_the_run_was_trained_with(
    settings, tmp_path, monkeypatch, capsys
):
    command = [*flags(settings | {"--arch": "topk", "--l0": 8, "--out": tmp_path / "run"}), "--quiet"]
    assert bench(*command) == 0
    assert bench(*command) == 0
    topk = ARCHITECTURES["topk"]
    monkeypatch.setattr(topk, "recipes", {"short": topk.recipes["short"] | {"lr": 1e-3}})
    capsys.readouterr()
    assert bench(*command) == 2
    assert "lr 0.004 -> 0.001" in capsys.readouterr().err
    assert bench(*command, "--overwrite") == 0


def test_an_sae_that_diverges_is_a_failure_on_record_and_spares_the_others(settings, tmp_path, capsys):
    command = settings | {"--arch": ("relu:lr=1e30", "topk"), "--l0": 8, "--out": tmp_path / "run"}
    assert bench(*flags(command), "--quiet") == 1
    out = capsys.readouterr().out
    assert "FAILED relu" in out
    records = records_of(tmp_path / "run")
    failed = [record for record in records.values() if record["failure"]]
    assert {record["sae"]["arch"] for record in failed} == {"relu"}
    assert all(record["scores"] == {} for record in failed)
    assert all("diverged" in record["failure"] for record in failed)
    assert {record["sae"]["arch"] for record in records.values() if record["scores"]} == {"topk"}


# What SAELens v6 reads: names and shapes of tensors per architecture, d wide, F latents.
WEIGHTS = "sae_weights.safetensors"
COMMON = {"W_enc": (D_MODEL, 64), "W_dec": (64, D_MODEL), "b_dec": (D_MODEL,)}
SAELENS = {
    "relu": ("standard", {"b_enc": (64,)}, {}),
    "gated": ("gated", {"b_gate": (64,), "b_mag": (64,), "r_mag": (64,)}, {}),
    "topk": ("topk", {"b_enc": (64,)}, {"k": 4}),
    "jumprelu": ("jumprelu", {"b_enc": (64,), "threshold": (64,)}, {}),
}


@pytest.mark.parametrize("arch", ARCHS)
def test_saved_saes_have_the_layout_of_saelens_v6(finished, arch):
    (folder,) = finished.glob(f"saes/{arch}.*l0_4.*")
    theirs, tensors, settings = SAELENS[arch]
    weights = load_file(folder / WEIGHTS)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == COMMON | tensors
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    cfg = json.loads((folder / "cfg.json").read_text())
    metadata = cfg.pop("metadata")
    assert cfg == settings | {
        "architecture": theirs, "d_in": D_MODEL, "d_sae": 64, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
    }  # fmt: skip
    assert int(metadata["sae_lens_version"].split(".")[0]) >= 6
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert (metadata["prepend_bos"], metadata["context_size"]) == (True, 32)
    norms = weights["W_dec"].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(64))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_saved_tensors_alone_give_the_reconstruction(finished, arch):
    """What another library computes from the file, written out from the papers' formulas, is what we evaluated."""
    (folder,) = finished.glob(f"saes/{arch}.*l0_4.*")
    w = load_file(folder / WEIGHTS)
    x = 5 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(0))
    z = x @ w["W_enc"] + w.get("b_enc", 0)
    if arch == "relu":
        f = z.relu()
    elif arch == "topk":
        f = torch.zeros_like(z).scatter(1, z.topk(4).indices, z.topk(4).values.relu())
    elif arch == "jumprelu":
        f = z.relu() * (z > w["threshold"])
    else:
        f = (w["r_mag"].exp() * z + w["b_mag"]).relu() * (z + w["b_gate"] > 0)
    with torch.no_grad():
        torch.testing.assert_close(load_sae(folder)(x), f @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_loaded_sae_is_the_trained_one(tmp_path, settings, monkeypatch, arch):
    trained = {}

    def keep(folder, sae, *rest):
        trained[folder] = sae
        save(folder, sae, *rest)

    from sae_bench.formats.ours import write as save

    monkeypatch.setattr("sae_bench.formats.ours.write", keep)
    assert bench(*flags(settings | {"--arch": arch, "--l0": 6, "--out": tmp_path / "run"}), "--quiet") == 0
    ((folder, sae),) = trained.items()
    loaded = load_sae(folder)
    assert isinstance(loaded, ARCHITECTURES[arch])
    x = 5 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(x), sae(x))
