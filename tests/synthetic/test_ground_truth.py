"""`ground_truth` on dictionaries whose scores are known, and its metrics by hand."""

import inspect

import pytest
import torch

from sae_bench import TASKS, EvalBatch, EvalSetting
from sae_bench.evaluation.recovery import abs_cosines, best_features, detection, matched_cosine, unique_share
from sae_bench.registry import ARCHITECTURES
from sae_bench.saes.active import as_active
from sae_bench.saes.base import SAEConfig
from sae_bench.synthetic.samples import DOCUMENT
from sae_bench.synthetic.settings import BLOCK, WorldSettings
from sae_bench.synthetic.world import World

ORTHOGONAL = WorldSettings(
    n_features=24, d_in=24, n_roots=4, n_children=2, depth=1, min_probability=0.02, scaled=False, deviation_spread=0.0
)
N_BLOCKS = 16
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world():
    """As many orthogonal features as dimensions: nothing disturbs a projection."""
    world = World(ORTHOGONAL, "toy", torch.device("cpu"))
    world.__dict__["features"] = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(0)))[0]
    return world


def scored_together(world, dictionaries, threshold=2.0):
    """What the task says of each of some dictionaries that are their own encoders, with one threshold."""
    truth = torch.cat([world.block(BLOCK * i) for i in range(N_BLOCKS)])
    x = truth @ world.features + world.bias
    document, tasks, shared = torch.arange(len(x)) // DOCUMENT, [TASKS["ground_truth"]() for _ in dictionaries], {}
    for task, rows in zip(tasks, dictionaries, strict=True):
        sae = ARCHITECTURES["relu"](SAEConfig(d_in=24, d_sae=len(rows), l0=3)).requires_grad_(False)
        sae.W_dec.copy_(rows)
        task.start(EvalSetting(sae, x.mean(0), int(document.max()) + 1, CPU, world=world, shared=shared))
    for some in torch.arange(len(x)).split(BLOCK):
        for task, rows in zip(tasks, dictionaries, strict=True):
            z = (x[some] - world.bias) @ rows.T
            f = as_active(torch.where(z > threshold, z, 0))
            task.update(EvalBatch(x[some], f, x[some], document[some], None, truth=truth[some]))
    return [task.finish() for task in tasks]


def scored(world, rows, threshold=2.0):
    """The same of one."""
    return scored_together(world, [rows], threshold)[0]


def values(result):
    return {name: score.value for name, score in result.scores.items()}


def test_the_true_dictionary_finds_every_feature(world):
    result = scored(world, world.features)
    assert values(result) == pytest.approx({metric.name: 1 for metric in TASKS["ground_truth"].metrics}, abs=0.01)
    assert result.scores["mcc"].value == pytest.approx(1, abs=1e-5)
    assert result.per_latent["feature"] == [*range(24)]
    ceiling = result.details["ceiling"]
    assert ceiling["f1"] > 0.99
    assert ceiling["threshold"] < 4
    assert ceiling["f1_at_width"] == pytest.approx(ceiling["f1"])


def test_the_order_and_the_sign_of_latents_do_not_matter(world):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    result = scored(world, world.features[order])
    assert values(result) == pytest.approx(values(scored(world, world.features)))
    assert result.per_latent["feature"] == order.tolist()
    cosines = abs_cosines(-world.features[order], world.features)
    assert matched_cosine(cosines) == pytest.approx(1, abs=1e-6)


def test_latents_that_share_a_feature_lower_uniqueness_and_the_matching_but_not_f1(world):
    rows = world.features[torch.arange(24) // 2]  # 12 features, each twice
    found = values(scored(world, rows))
    assert found["uniqueness"] == 0.5
    assert found["mcc"] == pytest.approx(0.5, abs=1e-5)  # the other is matched with what it is orthogonal to
    assert found["f1"] > 0.99


def test_a_rotated_dictionary_finds_little(world):
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(2)))[0]
    found = values(scored(world, world.features @ rotation))
    assert found["mcc"] < 0.6
    assert found["f1"] < 0.5


def test_a_threshold_that_is_too_high_costs_recall_and_one_that_is_too_low_precision(world):
    high, low = scored(world, world.features, threshold=4.9), scored(world, world.features, threshold=-0.1)
    assert (high.scores["precision"].value, low.scores["recall"].value) == pytest.approx((1, 1), abs=0.05)
    assert high.scores["recall"].value < 0.6
    assert low.scores["precision"].value < 0.5


def test_detection_by_hand():
    """3 of a latent's 4 firings are the feature's, which fires 6 times; one never fires; one's feature never does."""
    found = detection(torch.tensor([3.0, 0, 0]), torch.tensor([4.0, 0, 5]), torch.tensor([6.0, 2, 0]))
    assert found.precision.tolist() == [0.75, 0, 0]
    assert found.recall.tolist() == [0.5, 0, 0]
    assert found.f1.tolist() == pytest.approx([2 * 0.75 * 0.5 / 1.25, 0, 0])


def test_matching_by_hand():
    """The best pair of all, .9, is given up: .8 + .7 is more than .9 + .1. A third feature is left over."""
    cosines = torch.tensor([[0.9, 0.8, 0.2], [0.7, 0.1, 0.3]])
    assert matched_cosine(cosines) == pytest.approx((0.8 + 0.7) / 2)
    assert matched_cosine(cosines.T) == pytest.approx((0.8 + 0.7) / 2)
    assert best_features(cosines).tolist() == [0, 0]
    assert unique_share(best_features(cosines)) == 0.5


def test_errors_cover_what_other_samples_give(world):
    """F1 on 16 sets of samples spreads as its jackknife error says."""
    noisy = world.features + 0.25 * torch.randn(24, 24, generator=torch.Generator().manual_seed(3))
    found = []
    block = world.block
    for part in range(16):
        world.__dict__["block"] = lambda first, part=part: block(first + (part + 1) * N_BLOCKS * BLOCK)
        found.append(scored(world, noisy).scores["f1"])
    del world.__dict__["block"]
    spread = torch.tensor([score.value for score in found]).std().item()
    errors = torch.tensor([score.stderr for score in found]).mean().item()
    assert 0.5 < spread / errors < 1.8


def test_what_is_the_same_for_all_saes_is_counted_once(world, monkeypatch):
    """And says of each what it says where an SAE is alone."""
    own = inspect.getmodule(TASKS["ground_truth"]).OwnEncoder
    counted, count = [], own.count
    monkeypatch.setattr(own, "count", lambda self, x, fires: counted.append(len(x)) or count(self, x, fires))
    dictionaries = [world.features, world.features[:6], -world.features]
    together = scored_together(world, dictionaries)
    assert counted == [BLOCK] * N_BLOCKS
    for result, rows in zip(together, dictionaries, strict=True):
        alone = scored(world, rows)
        assert (result.details, result.scores) == (alone.details, alone.scores)
