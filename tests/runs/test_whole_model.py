"""Every layer and site of a model can be asked for by one word, and is found without a pass for each."""

import pytest
from tiny import tiny_gemma2, tiny_gpt_neox
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_bench.errors import UserError
from sae_bench.lm.sites import SITE_KINDS, find_site, find_sites
from sae_bench.lm.skeleton import build_skeleton
from sae_bench.runs.config import RunConfig
from sae_bench.runs.suite import load_suite
from sae_bench.runs.whole_model import resolve_all


def test_layers_are_numbers_and_ranges_each_once():
    def layers(*given):
        return RunConfig.build({"archs": ["topk"], "layers": given}).layers

    assert layers("5-7", "6", 2, "9 - 10") == (5, 6, 7, 2, 9, 10)
    assert RunConfig.build({"archs": ["topk"], "layers": ("0-2",)}).hash == (
        RunConfig.build({"archs": ["topk"], "layers": [0, 1, 2]}).hash
    )
    for wrong in ("7-5", "x", "-1", "1-", "1.5"):
        with pytest.raises(UserError, match="--layer"):
            layers(wrong)


def test_all_is_what_the_model_has_and_the_sites_of_gemma_scope():
    found = resolve_all({"model": "gemma-2-9b", "layers": ["all"], "sites": ["all", "resid_pre"]})
    assert found == {"layers": tuple(range(42)), "sites": (*SITE_KINDS, "resid_pre")}
    assert resolve_all({"model": "demo", "layers": "all", "sites": ["mlp_out"]}) == {"layers": tuple(range(18))}


@pytest.mark.parametrize("suite", ["gemma-2-2b", "gemma-2-9b"])
def test_a_suite_of_a_whole_model_is_that_of_its_middle_layer_elsewhere(suite):
    middle, whole = load_suite(suite), load_suite(f"{suite}-all")
    assert whole == middle | {"layers": ["all"], "sites": ["all"]}


@pytest.mark.parametrize("build", [tiny_gemma2, tiny_gpt_neox])
def test_layers_built_alike_are_looked_into_once_and_each_site_is_found_as_alone(build):
    config = build().config
    layers = range(config.num_hidden_layers)
    with FakeTensorMode():
        model = build_skeleton(config)
        alone = [find_site(model, kind, layer) for layer in layers for kind in SITE_KINDS]
        passes = []
        model.register_forward_pre_hook(lambda *_: passes.append(1))
        assert find_sites(model, SITE_KINDS, layers) == alone
        assert len(passes) < len(alone) / 2, "one for each kind, and one more for its module"
        assert (
            find_sites(model, ["path:" + alone[1].path.replace(".0.", ".{layer}.")], layers)[-1].path == alone[-2].path
        )
        with pytest.raises(UserError, match="layer 99"):
            find_sites(model, ["resid_post"], [99])
