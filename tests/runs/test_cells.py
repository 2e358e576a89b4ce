"""What an SAE becomes does not depend on which others are trained, evaluated and collected beside it."""

import pytest
from command import bench, files, flags
from test_end_to_end import records_of, weights_of

from sae_bench.registry import TASKS
from sae_bench.runs.left import among_seeds

NOISY = '''
"""Draws from torch's global generators, when it is made and in every step."""
import torch
from sae_bench import Loss, SparseAutoencoder, reconstruction_loss, register_architecture

@register_architecture("noisy")
class Noisy(SparseAutoencoder):
    def __init__(self, config):
        super().__init__(config)
        with torch.no_grad():
            self.b_enc.add_(0.01 * torch.randn_like(self.b_enc))

    def encode(self, x):
        return self.select(x, keep=lambda z: z > 0)

    def loss(self, x, step):
        f = self.encode(x + 0.1 * torch.randn_like(x))
        x_hat = self.decode(f)
        return Loss(reconstruction_loss(x, x_hat) + step.coefficient * f.sum_per_token(f.values), x_hat, f)
'''


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    plugin = at_work / "noisy.py"
    plugin.write_text(NOISY)
    return {
        "--l0": 6, "--model": gemma2_folder, "--dataset": corpus, "--width": 48, "--tokens": 1200, "--reuse": 2,
        "--batch-size": 120, "--eval-tokens": 800, "--context-size": 32, "--buffer-tokens": 600, "--latents": 3,
        "--interp-tokens": 300, "--plugin": plugin,
    }  # fmt: skip


@pytest.fixture(scope="module")
def together(settings, at_work):
    """Three architectures, two seeds, two sites; in memory that suffices for few replies at a time."""
    several = {"--arch": ("topk", "relu", "noisy"), "--seed": (0, 1), "--layer": (2, 1), "--out": at_work / "together"}
    assert bench(*flags(settings | several), "--quiet") == 0
    return at_work / "together"


def measured(records):
    """What is said of each SAE alone: a comparison with other seeds depends on which there are."""
    return {
        name: {key: record[key] for key in ("scores", "by_document", "per_latent")}
        for name, record in records
        if record["task"] not in among_seeds(list(TASKS))
    }


@pytest.mark.parametrize(("arch", "seed", "layer"), [("noisy", 1, 1), ("relu", 0, 2)])
def test_an_sae_alone_is_the_one_that_it_is_beside_others(settings, together, tmp_path, arch, seed, layer):
    alone = {"--arch": arch, "--seed": seed, "--layer": layer, "--out": tmp_path / "alone"}
    assert bench(*flags(settings | alone), "--quiet") == 0
    (name,) = weights_of(tmp_path / "alone")
    assert weights_of(tmp_path / "alone")[name] == weights_of(together)[name]
    found = measured(records_of(tmp_path / "alone").items())
    assert len(found) > 3
    assert found == {of: values for of, values in measured(records_of(together).items()).items() if of in found}
    latents = files(tmp_path / "alone" / "latents" / name)
    assert latents
    assert latents == files(together / "latents" / name)
