"""An architecture is one file: a plugin in a folder of its own is trained, evaluated, exported, converted and drawn."""

import json

import pytest
from command import bench, flags
from test_formats import opened

from sae_bench.leaderboard.palette import LOOKS, looks

PLUGIN = '''
"""One threshold, divided among the latents as they like; written densely."""
import torch
from torch import nn
from sae_bench import Loss, SparseAutoencoder, reconstruction_loss, register_architecture

@register_architecture("mine")
class Mine(SparseAutoencoder):
    nonlinearity = "jumprelu"
    stored_names = {"t": "threshold"}

    def __init__(self, config):
        super().__init__(config)
        self.t = nn.Parameter(torch.linspace(0.005, 0.02, config.d_sae), requires_grad=False)

    def biases(self):
        return [self.b_enc, self.t]

    def encode(self, x):
        z = (x if self.folded else x - self.b_dec) @ self.W_enc + self.b_enc
        return z * (z > self.t)

    def loss(self, x, step):
        f = self.encode(x)
        x_hat = self.decode(f)
        error, l1 = reconstruction_loss(x, x_hat), f.sum(1).mean()
        return Loss(error + step.coefficient * l1, x_hat, f, {"reconstruction": error, "l1": l1})
'''


@pytest.fixture(scope="module")
def plugin(at_work):
    path = at_work / "mine.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def run(gemma2_folder, corpus, at_work, plugin):
    settings = {
        "--plugin": plugin, "--arch": ("mine", "topk"), "--model": gemma2_folder, "--layer": 1, "--dataset": corpus,
        "--width": 64, "--tokens": 1000, "--reuse": 2, "--batch-size": 200, "--eval-tokens": 400, "--l0": 6,
        "--context-size": 32, "--out": at_work / "run",
    }  # fmt: skip
    assert bench(*flags(settings), "--quiet") == 0
    return at_work / "run"


def the_sae(run):
    (folder,) = run.glob("saes/mine*")
    return folder


def test_it_is_evaluated_like_any_other(run):
    scores = {
        record["sae"]["arch"]: record["scores"]
        for record in (json.loads(path.read_text()) for path in run.glob("records/*.json"))
        if record["task"] == "reconstruction"
    }
    assert scores["mine"].keys() == scores["topk"].keys()
    assert 0 < scores["mine"]["l0"]["value"] < 64


def test_what_is_saved_is_verified(run, plugin):
    assert bench("verify", run, "--plugin", plugin, "--quiet") == 0


def test_its_folder_is_one_of_saelens(run):
    config = json.loads((the_sae(run) / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu"


@pytest.mark.parametrize("form", ["saelens", "dictionary_learning", "gemma-scope"])
def test_other_tools_files_hold_it(run, plugin, tmp_path, form):
    own = the_sae(run)
    assert bench("export", run, "--format", form, "--out", tmp_path, "--sae", own.name, "--plugin", plugin) == 0
    (weights,) = (path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".pt", ".npz"))
    back, sae = opened(weights.parent).build(), opened(own).build()
    assert (back.name, sae.name) == ("jumprelu", "mine")
    assert all((back.stored()[name] == value).all() for name, value in sae.stored().items())


def test_a_format_that_cannot_hold_it_says_so(run, plugin, tmp_path, capsys):
    own = the_sae(run).name
    assert bench("export", run, "--format", "sparsify", "--out", tmp_path, "--sae", own, "--plugin", plugin) == 2
    assert "does not fit into sparsify" in capsys.readouterr().err


def test_it_is_converted_and_loses_nothing(run, plugin, tmp_path):
    out, own = tmp_path / "out", the_sae(run).name
    assert bench("convert", run, "--to", "gated", "--out", out, "--sae", own, "--plugin", plugin, "--quiet") == 0
    (cost,) = json.loads((out / "conversion.json").read_text())["costs"]
    for metric, before in cost["before"].items():
        assert cost["after"][metric]["value"] == pytest.approx(before["value"], abs=1e-4)


def test_its_look_is_its_own_and_nobody_elses(run, tmp_path):
    assert bench("figures", run, "--out", tmp_path) == 0
    assert list(tmp_path.iterdir())
    labels = ["mine", *(f"yours {i}" for i in range(40)), "topk"]
    assert len(set(looks(labels).values())) == len(labels)
    assert looks(["mine", "topk"])["mine"].colour != looks(["mine", "topk"])["topk"].colour == LOOKS[1].colour
