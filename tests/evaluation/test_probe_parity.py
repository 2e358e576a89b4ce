"""Sparse probing by SAE-Probes' own functions and by ours, on the same latents of the same texts."""

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch

from sae_bench import ARCHITECTURES, SAEConfig
from sae_bench.probing.probe import MAX_TRAIN, N_TEST, Split, fit_probe
from sae_bench.probing.sets import package_sets
from sae_bench.probing.sparse import ranked_latents
from sae_bench.saes.active import as_active

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sae_probes") is None,
    reason="45 MB of labelled texts, under their sources' terms: pip install --no-deps sae-probes",
)


@pytest.fixture(scope="module")
def peer():
    """The package's modules; what they import and these functions never call is replaced by nothing."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in (("sae_lens", ["SAE"]), ("xgboost", []), ("transformer_lens", ["HookedTransformer"])):
            module = ModuleType(name)
            vars(module).update(dict.fromkeys(content, type))
            patch.setitem(sys.modules, name, module)
        patch.setattr(pd, "read_csv", _unpacked)  # pandas needs another package for zstd
        yield {
            name: importlib.import_module(f"sae_probes.{name}")
            for name in ("utils_data", "utils_training", "run_sae_evals")
        }


read_csv = pd.read_csv


def _unpacked(source, compression=None):
    if compression is None:
        return read_csv(source)
    with pyarrow.input_stream(str(source), compression=compression) as stream:
        return read_csv(stream)


def latents_of(texts):
    """Latents of a random topk SAE on vectors of the texts: sums of a random vector for each word."""
    vectors = []
    for text in texts:
        draws = [np.random.default_rng(sum(map(ord, word)) % 9973).normal(size=24) for word in text.lower().split()]
        vectors.append(np.sum(draws, axis=0))
    x = torch.tensor(np.array(vectors), dtype=torch.float32)
    return ARCHITECTURES["random"](SAEConfig(d_in=24, d_sae=256, l0=16)).requires_grad_(False), x


@pytest.mark.parametrize("name", ["96_spam_is", "105_click_bait"])
def test_split_ranking_and_regression_are_those_of_the_package(peer, name):
    (one,) = package_sets([name])
    ours = Split.of(one.labels)
    n_train = min(len(one.texts) - N_TEST, MAX_TRAIN)
    theirs = peer["utils_data"].get_train_test_indices(one.labels, n_train, len(one.texts) - n_train - 1, 0.5, 42)
    assert [ours.train.tolist(), ours.test.tolist()] == [theirs[0].tolist(), theirs[1].tolist()]

    sae, x = latents_of(one.texts)
    ranked = ranked_latents(sae, x, one.labels, ours, 16)
    f = as_active(sae.encode(x)).to_dense().double()
    y = torch.from_numpy(one.labels)
    of_theirs = peer["run_sae_evals"]
    order = of_theirs.get_sorted_indices(f[ours.train], y[ours.train], of_theirs.mean_act_normalization)
    assert ranked.latents.tolist() == order[:16].tolist()

    scale = f[ours.train].abs().sum(0) / (f[ours.train] != 0).sum(0).clamp(min=1)
    divided = f / torch.where(scale > 0, scale, 1.0)
    for k in (1, 5, 16):
        found = fit_probe(ranked.columns[:, :k], one.labels, ours, "l1")
        columns = [divided[rows][:, order[:k]].numpy() for rows in (ours.train, ours.test)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            best = peer["utils_training"].find_best_reg(
                columns[0], one.labels[ours.train], columns[1], one.labels[ours.test], penalty="l1", seed=42
            )
        expected = best.metrics
        assert found.auc == pytest.approx(expected.test_auc, abs=1e-3)
        assert found.accuracy == pytest.approx(expected.test_acc, abs=1e-3)
        assert found.f1 == pytest.approx(expected.test_f1, abs=1e-3)
        assert found.auc > 0.55
