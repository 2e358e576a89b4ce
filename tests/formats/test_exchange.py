"""Our SAEs in other formats and back, as other architectures, on the hub, and their results in SAEBench's files."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from command import bench, files, flags
from safetensors.torch import load_file
from synthetic import record, typed
from test_formats import opened
from tiny import D_MODEL

from sae_bench import ARCHITECTURES, SAEConfig, SparseAutoencoder
from sae_bench.cli.runs import Format
from sae_bench.errors import UserError
from sae_bench.formats import neuronpedia
from sae_bench.formats.export import WRITERS, export
from sae_bench.formats.ours import write
from sae_bench.formats.saebench import core_result
from sae_bench.records.files import read_sealed
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import SAEDescription, SiteDescription
from sae_bench.runs.publish import card, collect
from sae_bench.saes.convert import TARGETS, convert, to_built_in
from sae_bench.saes.save import load_sae

ARCHS = ("gated", "jumprelu", "relu", "topk")
D, F, K = 24, 64, 6

# What is stored as we have it comes back to the bit; b_dec, where it is taken out of a bias and put back, to rounding.
HOLDS = {
    "saelens": dict.fromkeys((*ARCHS, "abs_topk", "matching_pursuit"), "exactly"),
    "gemma-scope": {"jumprelu": "exactly"},
    "gemma-scope-2": {"jumprelu": "exactly"},
    "dictionary_learning": {"relu": "exactly", "jumprelu": "exactly", "gated": "rounded", "topk": "rounded"},
    "sparsify": {"topk": "rounded"},
}
CASES = [(form, arch) for form, archs in HOLDS.items() for arch in archs]
SITE = {
    "layer": 3, "kind": "resid_post", "path": "model.layers.3", "side": "output", "d_in": D,
    "name": "layer_3.resid_post",
}  # fmt: skip


def make(arch: str, scale: float = 3.0) -> SparseAutoencoder:
    """A folded SAE of an architecture with random weights: biases, thresholds and gains of all signs and sizes."""
    sae = ARCHITECTURES[arch](SAEConfig(d_in=D, d_sae=F, l0=K, seed=1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            if weight.ndim == 1:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
            if name == "theta_parameter":
                weight.abs_().clamp_(min=1e-3).log_()
    return sae.fold(scale).requires_grad_(False)


def inputs(n: int = 400) -> torch.Tensor:
    return 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(3))


def make_run(folder: Path, *saes: SparseAutoencoder) -> Path:
    """The part of a run's folder that exporting looks at."""
    for sae in saes:
        sae_id, site = f"{sae.name}.layer_3.resid_post", SiteDescription(**SITE)
        description = SAEDescription.model_construct(id=sae_id, arch=sae.name, label=sae.name, site=site)
        metadata = {"model_name": "owner/model", "hook_name": "blocks.3.hook_resid_post"}
        write(folder / "saes" / sae_id, sae, description, metadata)
    (folder / "records").mkdir()
    return folder


def outputs(sae: SparseAutoencoder) -> tuple[torch.Tensor, torch.Tensor]:
    x = inputs()
    return sae.encode(x).to_dense(), sae(x)


@pytest.mark.parametrize(("form", "arch"), CASES)
def test_ours_to_another_format_and_back_is_what_it_was(tmp_path, form, arch):
    sae = make(arch)
    (written,) = export(make_run(tmp_path / "run", sae), form, tmp_path / "out")
    foreign = opened(written if written.is_dir() else written.parent)
    back = foreign.build()
    assert back.name == arch
    module = form == "gemma-scope-2"  # it names the module itself
    said = ("path:model.layers.3", None) if module else ("resid_post", 3)
    assert (foreign.place.kind, foreign.place.layer) == said
    for name, weight in sae.named_parameters():
        other = dict(back.named_parameters())[name]
        if HOLDS[form][arch] == "exactly" or name in ("W_enc", "W_dec", "b_dec", "r_mag"):
            assert torch.equal(other, weight), name
        else:
            torch.testing.assert_close(other, weight, rtol=0, atol=2e-6)
    for ours, theirs in zip(outputs(sae), outputs(back), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("form", "arch"), [("dictionary_learning", "jumprelu"), ("saelens", "topk")])
def test_an_export_has_the_same_bytes_in_every_process(tmp_path, monkeypatch, form, arch):
    run, made = make_run(tmp_path / "run", make(arch)), []
    for number in (7, 12345):
        monkeypatch.setattr("os.getpid", lambda number=number: number)
        export(run, form, tmp_path / str(number))
        made.append(files(tmp_path / str(number)))
    assert made[0] == made[1]


@pytest.mark.parametrize("arch", ARCHS)
def test_an_sae_of_ours_is_itself_again(tmp_path, arch):
    sae = make(arch)
    run = make_run(tmp_path / "run", sae)
    back = opened(run).build()
    assert all(torch.equal(other, weight) for other, weight in zip(back.parameters(), sae.parameters(), strict=True))


@pytest.mark.parametrize(
    ("form", "arch"),
    [
        ("gemma-scope", "gated"), ("gemma-scope", "relu"), ("gemma-scope-2", "abs_topk"), ("sparsify", "jumprelu"),
        ("dictionary_learning", "matching_pursuit"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, form, arch):
    fitting = make("topk" if form == "sparsify" else "jumprelu")
    with pytest.raises(
        UserError, match=f"^{arch}.layer_3.resid_post does not fit into {form}, which holds .*, not {arch}: "
    ):
        export(make_run(tmp_path / "run", fitting, make(arch)), form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Bounded(ARCHITECTURES["relu"]):
    """A plugin's: what its latents are above a bound cannot be told by its base class."""

    name = "mine"

    def encode(self, x):
        f = super().encode(x)
        return f.with_values(f.values.clamp(max=1))


class Shifted(ARCHITECTURES["relu"]):
    """A plugin's: a jumprelu that keeps its thresholds under a name of its own."""

    name = "shifted"
    nonlinearity = "jumprelu"
    stored_names = {"t": "threshold"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.t = torch.nn.Parameter(torch.linspace(0, 0.02, F))

    def encode(self, x):
        return self.select(x, keep=lambda z: z > self.t)


def test_a_plugin_says_how_it_is_exported_or_is_refused(monkeypatch):
    mine = Bounded(SAEConfig(d_in=D, d_sae=F, l0=K))
    with pytest.raises(UserError, match=r'"mine" does not say how it is exported: give it as_built_in\(\)'):
        to_built_in(mine)
    same = make("jumprelu")
    monkeypatch.setattr(Bounded, "as_built_in", lambda sae: same)
    assert to_built_in(mine) is same


def test_a_plugin_that_names_its_nonlinearity_is_exported_as_the_built_in_one():
    mine = Shifted(SAEConfig(d_in=D, d_sae=F, l0=K)).fold(3.0).requires_grad_(False)
    other = to_built_in(mine)
    assert type(other) is ARCHITECTURES["jumprelu"]
    (f, x_hat), (f_other, x_hat_other) = outputs(mine), outputs(other)
    assert 0.05 < float((f > 0).float().mean()) < 0.5
    assert torch.equal(f_other, f)
    assert torch.equal(x_hat_other, x_hat)


def test_tensors_that_are_not_those_of_the_named_nonlinearity_are_refused(monkeypatch):
    monkeypatch.setattr(Shifted, "stored_names", {})
    with pytest.raises(UserError, match=r"not the tensors of a jumprelu SAE: .*\bt \(64,\)"):
        to_built_in(Shifted(SAEConfig(d_in=D, d_sae=F, l0=K)).fold(3.0))


EXACT = [("gated", "jumprelu"), ("jumprelu", "gated"), ("relu", "jumprelu"), ("relu", "gated")]

# --- conversions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "to"), EXACT)
def test_exact_conversions_compute_the_same(arch, to):
    sae = make(arch)
    other = convert(sae, to)
    assert other.name == to
    (f, x_hat), (f_other, x_hat_other) = outputs(sae), outputs(other)
    assert 0.05 < float((f > 0).float().mean()) < 0.95
    torch.testing.assert_close(f_other, f, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x_hat_other, x_hat, rtol=1e-4, atol=1e-4)


def test_gated_to_jumprelu_by_hand():
    """pi = x; r = ln 2: magnitudes 2 x + b_mag, and theta = max(b_mag - 2 b_gate, 0), of which one is below zero."""
    sae = ARCHITECTURES["gated"](SAEConfig(d_in=2, d_sae=2, l0=1))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
        sae.r_mag.fill_(2.0).log_()
        sae.b_mag.copy_(torch.tensor([3.0, -4.0]))
        sae.b_enc.copy_(torch.tensor([-1.0, 0.5]))
    sae.folded = True
    other = convert(sae.requires_grad_(False), "jumprelu")
    assert other.W_enc.tolist() == [[2, 0], [0, 2]]
    assert other.theta.tolist() == [5, 0], "3 + 2, and -4 - 1 cut at zero"
    x = torch.tensor([[1.0, 0.0], [1.5, 3.0], [0.5, 1.0]])
    assert sae.encode(x).to_dense().tolist() == other.encode(x).to_dense().tolist() == [[0, 0], [6, 2], [0, 0]]


def test_a_calibrated_topk_keeps_k_latents_on_average_and_the_same_values():
    sae = make("topk")
    x = inputs(500)
    other = convert(sae, "jumprelu", x)
    assert other.theta.unique().numel() == 1
    f, f_other = sae.encode(x).to_dense(), other.encode(x).to_dense()
    assert int((f_other > 0).sum()) == 500 * K
    both = (f > 0) & (f_other > 0)
    torch.testing.assert_close(f_other[both], f[both])
    assert not torch.equal((f_other > 0).sum(1), (f > 0).sum(1)), "on one token it is another number"


@pytest.mark.parametrize(("arch", "to"), [("gated", "topk"), *product(("abs_topk", "matching_pursuit"), TARGETS)])
def test_what_has_no_conversion_is_refused(arch, to):
    with pytest.raises(UserError, match=f'an SAE of {arch} has no conversion to "{to}"'):
        convert(make(arch), to, inputs())


def test_every_format_that_is_written_can_be_asked_for():
    assert {*get_args(Format)} == {*WRITERS, neuronpedia.FORMAT}  # which is no SAE's, but its latents'


# --- the verbs, on a real run ----------------------------------------------------------------------------------------


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
        core_result("mine", {"reconstruction": one}, make("topk"))


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
