"""An SAE from elsewhere is measured at the module that its files name, or not at all.

Each spelling is one that its tool's own code writes (docs/formats.md has the table). The SAE is the first principal
components of what a plain forward hook sees on the module that the tool would have trained it on, so it has another FVE
everywhere else.
"""

import pytest
import torch
from foreign_files import D, write_dictionary_learning, write_gemma_scope, write_saelens, write_sparsify
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from spellings import (
    RANK,
    SPELLINGS,
    dictionary_learning,
    dl,
    dl_path,
    gemma_scope_2,
    gs2,
    lens,
    principal,
    saelens,
    sp,
    sparsify,
)
from tiny import tiny_gemma2, tiny_gpt2, tiny_gpt_neox, tiny_llama, tiny_tokenizer
from transformers import GPT2LMHeadModel

from sae_bench.errors import UserError
from sae_bench.formats.open import find_sources, open_sae
from sae_bench.lm.model import LanguageModel
from sae_bench.runs.config import RunConfig
from sae_bench.runs.places import locate

TOKENS = torch.arange(60).reshape(4, 15) + 5
MAKERS = {"neox": tiny_gpt_neox, "gpt2": tiny_gpt2, "llama": tiny_llama, "gemma2": tiny_gemma2}


@pytest.fixture(scope="module")
def models():
    return {name: LanguageModel(make(), tiny_tokenizer("gpt2"), name) for name, make in MAKERS.items()}


def config(**flags):
    return RunConfig.build({"model": "demo", "saes": [{"source": "a", "sha256": "1"}]} | flags)


def seen_by_a_hook(model, module, side="output"):
    """What a plain forward hook sees on a module."""
    found = []

    def see(_, args, kwargs, output):
        entered = args[0] if args else next(iter(kwargs.values()))
        found.append(entered if side == "input" else output[0] if isinstance(output, tuple) else output)

    handle = model.get_submodule(module).register_forward_hook(see, with_kwargs=True)
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    handle.remove()
    return found[0].flatten(0, 1)


def fve(x, x_hat):
    return float(1 - (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


def placed(lm, path, **flags):
    (source,) = find_sources(str(path))
    sae = open_sae(source)
    return sae, locate(lm, config(**flags), sae)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_is_measured_at_the_module_that_its_tool_means(models, tmp_path, spelling):
    write, model, module, side, name = SPELLINGS[spelling]
    lm = models[model]
    x = seen_by_a_hook(lm.model, module, side)
    w = principal(x)
    truth = fve(x, (x - w["b_dec"]) @ w["W_dec"][:RANK].T @ w["W_dec"][:RANK] + w["b_dec"])
    if "Gemma Scope" in spelling:  # it does not subtract b_dec first
        w["b_enc"] = -w["b_dec"] @ w["W_enc"]
    sae, located = placed(lm, write(tmp_path, w))
    site = located.site
    assert site.name == name
    measured = lm.capture(TOKENS, [site])[site].flatten(0, 1)
    assert fve(measured, sae.build()(measured)) == pytest.approx(truth, abs=1e-4)
    assert truth < 0.999
    assert located.read_from.partition(",")[0] in ("cfg.json", "config.json", "its path")


UNCLEAR = {
    "hook_q": lens("blocks.1.attn.hook_q"),
    "hook_normalized": lens("blocks.1.ln2.hook_normalized"),
    "hook_embed": lens("hook_embed"),
    "a word": lens("the residual stream"),
    "a word of dl": dl("post_mlp"),
    "a word in": dl("mlp_out_layer_1", io="in"),
    "in, no module": dl(None, io="in"),
    "embed": dl("embed"),
    "embed/": dl_path("pythia-70m-deduped", "embed", "10_32768"),
    "embed_tokens": sp("embed_tokens"),
    "another layer": dl("resid_post_layer_1", layer=2),
    "another layer's module": dl("gpt_neox.layers.1.mlp", layer=2),
    "no such module": sp("layers.1.mpl"),
    "a point that is none": gs2("resid_post", hf_hook_point_in="model.layers.1.grad"),
    "nothing said": dl(None),
    "a folder's own word": sp("mine"),
}


@pytest.mark.parametrize("spelling", UNCLEAR)
def test_a_place_that_is_not_understood_is_a_question_and_a_flag_answers_it(models, tmp_path, spelling):
    lm = models["neox"]
    path = UNCLEAR[spelling](tmp_path, principal(torch.randn(60, D)))
    with pytest.raises(UserError, match=r"--site|--layer") as error:
        placed(lm, path)
    assert str(path) in str(error.value)
    if spelling not in ("another layer's module", "no such module"):  # which a flag may contradict only where it wins
        assert placed(lm, path, sites=["mlp_out"], layers=[1])[1].site.name == "layer_1.mlp_out"


def test_flags_win_over_a_path_with_a_word_and_contradict_no_file(models, tmp_path):
    lm, w = models["neox"], principal(torch.randn(60, D))
    by_path = sparsify(tmp_path / "layers.1", w)
    _, located = placed(lm, by_path, sites=["mlp_out"], layers=[2])
    assert (located.site.name, located.read_from) == ("layer_2.mlp_out", "a flag")
    assert any("its path says" in note for note in located.notes)
    by_file = saelens(tmp_path / "s", w, hook_name="blocks.1.hook_resid_post")
    assert placed(lm, by_file, sites=["resid_post"], layers=[1])[1].site.name == "layer_1.resid_post"
    assert placed(lm, by_file, sites=["path:gpt_neox.layers.1"])[1].site.name == "layer_1.resid_post"
    for flags in ({"sites": ["mlp_out"]}, {"layers": [2]}, {"sites": ["path:gpt_neox.layers.1.mlp"]}):
        with pytest.raises(UserError, match=r"cfg\.json says"):
            placed(lm, by_file, **flags)
    training = {"archs": ["topk"], "l0s": [4], "sites": ["mlp_out"], "layers": [2]}
    assert placed(lm, by_file, **training)[1].site.name == "layer_1.resid_post", "flags say where to train"


NO_AUTOENCODERS = {
    "transcoder's repository": lambda t: write_gemma_scope(t)[0].parents[2].rename(t / "gemma-scope-2b-pt-transcoders"),
    "crosscoder's folder": lambda t: gemma_scope_2(t / "crosscoder" / "layer_1", principal(torch.randn(60, D))),
    "clt": lambda t: gemma_scope_2(t / "clt" / "layer_1", principal(torch.randn(60, D))),
    "hook_point_out": lambda t: gemma_scope_2(
        t / "a", principal(torch.randn(60, D)), hf_hook_point_in="model.layers.1.output", hf_hook_point_out="x.output"
    ),
    "SAELens's transcoder": lambda t: saelens(
        t / "s", principal(torch.randn(60, D)), architecture="jumprelu_transcoder", hook_name="blocks.1.hook_resid_post"
    ),
    "hook_name_out": lambda t: saelens(
        t / "s", principal(torch.randn(60, D)), hook_name="blocks.1.hook_mlp_in", hook_name_out="blocks.1.hook_mlp_out"
    ),
    "in_to_out": lambda t: dictionary_learning(t / "d", principal(torch.randn(60, D)), {"layer": 1}, io="in_to_out"),
    "in_and_out": lambda t: dictionary_learning(t / "d", principal(torch.randn(60, D)), {"layer": 1}, io="in_and_out"),
}


@pytest.mark.parametrize("kind", NO_AUTOENCODERS)
def test_what_is_no_autoencoder_is_refused_by_its_name_whatever_flags_say(models, tmp_path, kind):
    path = NO_AUTOENCODERS[kind](tmp_path)
    with pytest.raises(UserError, match=r"transcoder|crosscoder|clt|no autoencoder"):
        placed(models["neox"], next(path.glob("**/params.npz"), path), sites=["resid_post"], layers=[1])


PLACES = st.text(st.sampled_from("abhkmlnprstxy_.019[]@{}/ ") | st.characters(codec="utf-8", exclude_categories=["Cs"]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=PLACES, by=st.sampled_from(["saelens", "dictionary_learning", "gemma_scope_2"]))
@example(place="gpt_neox.layers.1.mlp@input", by="saelens")
@example(place="gpt_neox.layers.{layer}", by="saelens")
@example(place="not_resid_post_at_all", by="dictionary_learning")
@example(place="layers.1", by="dictionary_learning")
def test_any_string_as_a_place_is_refused_or_is_the_module_of_that_name(models, tmp_path_factory, place, by):
    lm, folder = models["neox"], tmp_path_factory.mktemp("any")
    w = principal(torch.randn(60, D))
    if by == "saelens":
        path = saelens(folder / "s", w, hook_name=place)
    elif by == "gemma_scope_2":
        path = gemma_scope_2(folder / "s", w, hf_hook_point_in=f"{place}.output")
    else:
        path = dictionary_learning(folder / "s", w, {"submodule_name": place})
    try:
        site = placed(lm, path)[1].site
    except UserError:
        return
    name = place.replace("[", ".").replace("]", "").removeprefix("model.")
    assert site.path == name or site.path == f"gpt_neox.{name}"
    assert site.side == "output"


def centred_model():
    """GPT-2 with its writing weights centred by hand, as TransformerLens's center_writing_weights says."""
    model = tiny_gpt2()
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # tied to the embedding until now
        for name, weight in model.transformer.named_parameters():
            if name in ("wte.weight", "wpe.weight") or "c_proj" in name:
                weight -= weight.mean(-1, keepdim=True)
    return model


@pytest.mark.parametrize(
    "hook", ["hook_resid_post", "hook_resid_pre", "hook_resid_mid", "hook_mlp_out", "hook_attn_out"]
)
def test_centred_writing_weights_are_applied_exactly(models, tmp_path, hook):
    """An SAE that is perfect on the centred model is perfect here, and splicing it in changes nothing."""
    lm, centred = models["gpt2"], centred_model()
    plain = saelens(tmp_path / "p", principal(torch.randn(60, D)), hook_name=f"blocks.1.{hook}")
    raw = placed(lm, plain)[1].site
    x = seen_by_a_hook(centred, raw.path, raw.side)
    mean = x.mean(0)
    v = torch.linalg.svd(x - mean, full_matrices=False).Vh[: D - 1]  # everything but the mean over dimensions
    rows = torch.cat([v, -v])
    w = {"W_enc": rows.T.contiguous(), "b_enc": torch.zeros(len(rows)), "W_dec": rows, "b_dec": mean}
    more = {"model_from_pretrained_kwargs": {"center_writing_weights": True, "fold_ln": True, "n_devices": 2}}
    sae, located = placed(lm, saelens(tmp_path / "s", w, hook_name=f"blocks.1.{hook}", **more))
    assert located.site.name.endswith(".centred")
    clean = lm.clean_pass(TOKENS, [located.site])
    ours = clean.activations[located.site]
    torch.testing.assert_close(ours.flatten(0, 1), x, rtol=1e-4, atol=1e-4)
    x_hat = sae.build()(ours.flatten(0, 1))
    assert fve(ours.flatten(0, 1), x_hat) > 0.99999
    torch.testing.assert_close(clean.replay(located.site, x_hat.view_as(ours)), clean.hidden, rtol=1e-3, atol=1e-3)
    assert fve(lm.capture(TOKENS, [raw])[raw].flatten(0, 1), x_hat) < 0.99, "centring matters here"


def test_centring_leaves_alone_what_transformer_lens_leaves_alone(models, tmp_path):
    """Models with RMSNorm, and what attention heads put out."""
    more = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    w = principal(torch.randn(60, D))
    rms = saelens(tmp_path / "a", w, hook_name="blocks.1.hook_resid_post", **more)
    assert not placed(models["llama"], rms)[1].site.centred
    heads = saelens(tmp_path / "b", w, hook_name="blocks.1.attn.hook_z", **more)
    assert not placed(models["gpt2"], heads)[1].site.centred
    for name in ("center_writing_weights", "fold_ln"):
        more = {"model_from_pretrained_kwargs": {name: True}}
        inner = saelens(tmp_path / name, w, hook_name="transformer.h.1.ln_1", **more)
        with pytest.raises(UserError, match=name):
            placed(models["gpt2"], inner)


def test_other_settings_that_change_activations_are_refused_or_said(models, tmp_path):
    w = principal(torch.randn(60, D))

    def notes(name, hook="blocks.1.hook_resid_post", **more):
        return " ".join(placed(models["gpt2"], saelens(tmp_path / name, w, hook_name=hook, **more))[1].notes)

    for name in ("fold_value_biases", "refactor_factored_attn_matrices"):
        with pytest.raises(UserError, match=name):
            notes(f"z {name}", "blocks.1.attn.hook_z", model_from_pretrained_kwargs={name: True})
        assert notes(name, model_from_pretrained_kwargs={name: True}) == ""
    assert isinstance(models["gpt2"].model, GPT2LMHeadModel)
    assert "bfloat16" in notes("a", model_from_pretrained_kwargs={"dtype": "torch.bfloat16"})
    assert "float32" not in notes("b", model_from_pretrained_kwargs={"dtype": "float32", "n_devices": 4})
    assert "revision = 'step9'" in notes("c", model_from_pretrained_kwargs={"revision": "step9"})
    assert "prepend_bos" in notes("d", prepend_bos=False)
    assert "seqpos_slice" in notes("e", seqpos_slice=[5, None])
    assert "frobnicate, scale_inputs" in notes("f", scale_inputs=2, frobnicate=1, l1_coefficient=3, wandb_entity="x")
    assert notes("g", lr=1, k=3, seqpos_slice=[None], model_class_name="HookedTransformer") == ""


def test_what_fits_no_site_of_an_sae_is_refused_by_its_name(models, tmp_path):
    w = principal(torch.randn(60, D))
    with pytest.raises(UserError, match="hook_head_index is 3"):
        placed(models["gpt2"], saelens(tmp_path / "a", w, hook_name="blocks.1.attn.hook_z", hook_head_index=3))
    parallel = saelens(tmp_path / "b", w, hook_name="blocks.1.hook_resid_mid")
    with pytest.raises(UserError, match="no resid_mid"):
        placed(models["neox"], parallel)


def test_what_tools_write_today_is_passed_without_a_word(models, tmp_path):
    """The settings of their own files are all known."""
    writers = {
        "s": lambda t: write_saelens(t, model_name=None)[0], "d": lambda t: write_dictionary_learning(t)[0],
        "p": lambda t: write_sparsify(t)[0], "g": lambda t: write_gemma_scope(t)[0],
    }  # fmt: skip
    for name, write in writers.items():
        assert placed(models["neox"], write(tmp_path / name))[1].notes == ()


def test_a_side_that_is_none_is_refused(models, tmp_path):
    w = principal(torch.randn(60, D))
    for side in ("inptu", None):
        more = {"module_path": "gpt_neox.layers.1.mlp", "module_side": side}
        path = saelens(tmp_path / str(side), w, hook_name="gpt_neox.layers.1.mlp", **more)
        with pytest.raises(UserError, match=f"after @ comes input or output, not .{side}"):
            placed(models["neox"], path)


def test_flags_may_say_what_enters_a_layer_where_the_file_says_so(models, tmp_path):
    lm, w = models["neox"], principal(torch.randn(60, D))
    path = saelens(tmp_path / "s", w, hook_name="blocks.2.hook_resid_pre")
    assert placed(lm, path, sites=["resid_pre"], layers=[2])[1].site.name == "layer_1.resid_post"
    for layer, site in ((1, "resid_pre"), (3, "resid_pre"), (2, "resid_post")):
        with pytest.raises(UserError, match=r"cfg\.json says"):
            placed(lm, path, sites=[site], layers=[layer])


def test_what_is_refused_or_asked_is_said_in_a_sentence(models, tmp_path):
    w = principal(torch.randn(60, D))
    with pytest.raises(UserError, match=r"names a transcoder, which predicts"):
        placed(models["neox"], saelens(tmp_path / "my-transcoders", w, hook_name="blocks.1.hook_resid_post"))
    contradiction = dictionary_learning(tmp_path / "d", w, {"submodule_name": "attn_out_layer_1", "layer": 2})
    with pytest.raises(UserError, match=r"'attn_out_layer_1', but layer 2: which site that is, is not known here: say"):
        placed(models["neox"], contradiction)
