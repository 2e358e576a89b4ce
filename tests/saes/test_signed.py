"""AbsTopK: latents of two signs, from the rule that keeps them to the tasks and pages that show them.

Shapes: B tokens, D = d_in, F = d_sae.
"""

from typing import Any

import numpy as np
import pytest
import torch
from float64_saes import assert_twins_agree, build, randomise
from torch import Tensor
from twins import abs_topk_twin, step

from sae_bench import ARCHITECTURES, SCORERS, TASKS, EvalBatch, EvalSetting, SAEConfig
from sae_bench.autointerp.examples import Example, LatentExamples
from sae_bench.autointerp.explainer import explain_question
from sae_bench.autointerp.sample import pairs_of
from sae_bench.autointerp.scorers.fuzzing import active_tokens, silent_tokens
from sae_bench.cli.latents import highlighted
from sae_bench.saes.active import as_active, select
from sae_bench.saes.kernels import kernels
from sae_bench.saes.rules import Largest
from sae_bench.testing import check_architecture


def test_it_keeps_the_contract() -> None:
    check_architecture("abs_topk")


@pytest.mark.parametrize("dead", [(), (9,), (1, 4, 9), (0, 1, 2, 5, 8, 11, 15)], ids=lambda dead: f"{len(dead)} dead")
def test_abs_topk_equals_its_dense_twin(dead: tuple[int, ...]) -> None:
    sae = randomise(build("abs_topk", k_aux=4))
    assert_twins_agree(sae, lambda p, x: abs_topk_twin(p, x, 3, dead, 4), step(dead=dead))


def hand_made() -> Any:
    """z is x: four latents, k = 2, W_dec = 1."""
    sae = ARCHITECTURES["abs_topk"](SAEConfig(d_in=4, d_sae=4, l0=2))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(4))
        sae.W_dec.copy_(torch.eye(4))
    return sae


@torch.no_grad()
def test_signs_are_kept_and_count_as_active() -> None:
    """Of (3, -1, 2, -4) it keeps 3 and -4; of (-3, -1, -2, 1), -3 and -2. Each token has two active latents."""
    f = hand_made().encode(torch.tensor([[3.0, -1, 2, -4], [-3.0, -1, -2, 1]]))
    assert f.to_dense().tolist() == [[3, 0, 0, -4], [-3, 0, -2, 0]]
    assert f.active_per_token().tolist() == [2, 2]
    assert f.count_per_latent().tolist() == [[2, 0, 1, 1]]
    assert as_active(f.to_dense()).active_per_token().tolist() == [2, 2]


@pytest.mark.parametrize("among", [None, torch.arange(0, 96, 2)], ids=["all", "some"])
def test_screening_keeps_the_largest_of_either_sign(among: Tensor | None) -> None:
    """Twenty batches: pairs and values are those of exact selection; half of what is kept is below zero."""
    below = 0.0
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        x, W, b = (torch.randn(shape, generator=draw) for shape in ((64, 16), (16, 96), (96,)))
        rule = Largest(5, among, signed=True)
        found = {}
        for way in ("off", "on"):
            with kernels("sparse", screening=way):  # type: ignore[arg-type]
                found[way] = select(x + 3, W, b, rule).to_dense()
        torch.testing.assert_close(found["on"], found["off"], rtol=1e-5, atol=1e-5)
        assert ((found["on"] != 0) == (found["off"] != 0)).all()
        below += float((found["on"] < 0).float().mean() / (found["on"] != 0).float().mean()) / 20
    assert 0.2 < below < 0.8


# --- tasks and pages --------------------------------------------------------------------------------------------


def scores_of(task: str, x: Tensor) -> Any:
    sae = hand_made().requires_grad_(False)
    sae.fold(1.0)
    of = TASKS[task]()
    document = torch.zeros(len(x), dtype=torch.long)
    fields = {"sae": sae, "mean": torch.zeros(4).double(), "n_documents": 1, "device": x.device}
    of.start(_setting(fields))
    f = sae.encode(x)
    of.update(_batch({"x": x, "x_hat": sae.decode(f), "f": f, "document": document}))
    return of.finish()


def _setting(fields: dict[str, Any]) -> EvalSetting:
    return _filled(EvalSetting, fields)


def _batch(fields: dict[str, Any]) -> EvalBatch:
    return _filled(EvalBatch, fields)


def _filled(cls: Any, fields: dict[str, Any]) -> Any:
    """An instance with these fields alone, which are all that these tasks look at."""
    made = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


X = torch.tensor([[3.0, -1, 2, -4], [-3.0, -1, -2, 1]])
"""f is (3, 0, 0, -4) and (-3, 0, -2, 0)."""


def test_l0_counts_negative_latents() -> None:
    assert scores_of("reconstruction", X).scores["l0"].value == 2


def test_density_counts_negative_latents() -> None:
    found = scores_of("feature_density", X)
    assert found.per_latent["count"] == [2, 0, 1, 1]
    assert found.scores["dead_share"].value == 0.25


def test_saebench_l1_is_of_sizes() -> None:
    """|3| + |-4| and |-3| + |-2|, where the signs would cancel."""
    assert sum(scores_of("saebench_core", X).by_document["l1"]) == 12


def test_a_latent_fires_where_it_is_not_zero() -> None:
    token, latent, value = pairs_of(hand_made().encode(X))
    assert list(zip(token.tolist(), latent.tolist(), value.tolist(), strict=True)) == [
        (0, 0, 3.0), (0, 3, -4.0), (1, 0, -3.0), (1, 2, -2.0),
    ]  # fmt: skip


def an_example(*activations: float) -> Example:
    return Example("top", "explain", None, 0, tuple("abcd"), activations)


def test_the_explainer_reads_signs_and_fuzzing_marks_both() -> None:
    example = an_example(0.0, -3.0, 0.0, 1.5)
    assert example.peak == 3
    question = explain_question(LatentExamples("sae", 0, 4.0, [example]), at_most=20)
    assert '["b", -7], ["d", 3]' in str(question.messages)
    assert active_tokens(example) == [1, 3]
    assert SCORERS["simulation"]()._question(example, "", 0).truth == [0, 3, 0, 1.5]
    assert silent_tokens(example) == [0, 2]


def test_the_terminal_shows_both_signs() -> None:
    assert highlighted("abcd", [0.0, -3.0, 0.0, 1.5], 4.0, colour=False) == "a[b|-7]c[d|3]"
    coloured = highlighted("ab", [-4.0, 4.0], 4.0, colour=True)
    assert len({part for part in coloured.split("\x1b[") if "48;5" in part}) == 2
    assert np.isfinite(an_example(-1.0).peak)
