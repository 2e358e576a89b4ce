"""Ours against SAELens's synthetic data and metrics, on its numbers; `sae_lens_world.py` made the file."""

from pathlib import Path

import pytest
import torch
from sae_lens_world import CHILDREN, DEPTH, LR, ROOTS, STEPS, D, N
from safetensors.torch import load_file

from sae_bench import ARCHITECTURES, TASKS, EvalBatch, EvalSetting, SAEConfig
from sae_bench.saes.active import as_active
from sae_bench.synthetic.dictionary import pushed_apart
from sae_bench.synthetic.hierarchy import applied, compensated, levels_of
from sae_bench.synthetic.settings import WorldSettings
from sae_bench.synthetic.world import World, firing

THEIRS = load_file(Path(__file__).with_name("sae_lens_world.safetensors"))
SETTINGS = WorldSettings(n_features=N, d_in=D, n_roots=ROOTS, n_children=CHILDREN, depth=DEPTH)
LEVELS = levels_of(SETTINGS)


def same(ours, name, tolerance=1e-6):
    assert torch.allclose(ours, THEIRS[name], rtol=tolerance, atol=tolerance)


def test_frequencies_and_their_compensation():
    world = World(SETTINGS, "toy", torch.device("cpu"))
    same(world.frequencies, "p")
    for name, exclusive in (("exclusive", True), ("free", False)):
        same(compensated(THEIRS["p"], LEVELS, exclusive=exclusive), f"compensated.{name}")


def test_directions_pushed_apart():
    same(pushed_apart(THEIRS["start"], STEPS, LR), "directions", 1e-5)  # Adam divides what little noise there is


def test_what_fires_on_the_same_random_numbers():
    own = (1 - THEIRS["factor"].square().sum(1)).sqrt()
    above = -torch.special.ndtri(THEIRS["p"])
    fires = firing(THEIRS["eps"], THEIRS["eta"].clone(), THEIRS["factor"].T, own, above)
    assert torch.equal(fires.float(), THEIRS["fires"])
    assert 0.02 < fires.float().mean() < 0.2


def test_the_hierarchy_on_the_same_activations_and_what_they_add_up_to():
    a = applied(THEIRS["drawn"].clone(), LEVELS, THEIRS["mean"], THEIRS["drawn"], exclusive=False, scaled=True)
    same(a, "a")
    assert (a != THEIRS["drawn"]).any()
    same(torch.addmm(THEIRS["bias"], a, THEIRS["directions"]), "x", 1e-5)


def test_scores_of_the_same_sae():
    truth, x = THEIRS["a"], THEIRS["x"]
    world = World(SETTINGS, "toy", torch.device("cpu"))
    world.__dict__.update(features=THEIRS["directions"], bias=THEIRS["bias"])
    rows = THEIRS["W_dec"]
    sae = ARCHITECTURES["relu"](SAEConfig(d_in=D, d_sae=len(rows), l0=3)).requires_grad_(False)
    sae.W_dec.copy_(rows)
    task, document = TASKS["ground_truth"](), torch.arange(len(x)) // 64
    task.start(EvalSetting(sae, x.mean(0), int(document.max()) + 1, torch.device("cpu"), world=world))
    task.update(EvalBatch(x, as_active(THEIRS["f"]), x, document, None, truth=truth))
    scores = task.finish().scores
    ours = [scores[name].value for name in ("mcc", "uniqueness", "precision", "recall", "f1")]
    assert ours == pytest.approx(THEIRS["scores"].tolist(), abs=1e-6)
    assert 0.2 < ours[-1] < 0.95
