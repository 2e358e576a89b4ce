"""One plugin file brings a language model of a structure of its own, its sites, and a corpus, and a run uses them."""

import json
import re
import sys
from pathlib import Path

import pytest
from command import bench, flags
from tiny import TEXT, tiny_phi, tiny_tokenizer

from sae_bench.errors import UserError
from sae_bench.lm import families, sites
from sae_bench.lm.corpus import describe, documents
from sae_bench.lm.model_names import resolve_model
from sae_bench.registry import CORPORA, MODELS, load_plugin

PLUGIN = """
import random
from sae_bench import Corpus, Family, register_corpus, register_family, register_model

register_family(Family("model.layers", "model.final_layernorm", "mlp", "self_attn.dense"))


@register_model("small-phi")
def small_phi():
    "A small model of the Phi family."
    return {folder!r}


@register_corpus("drawn")
class Drawn(Corpus):
    "Words in no order."
    version = 3

    def documents(self):
        draw = random.Random(0)
        return [" ".join(draw.choices({words!r}, k=draw.randint(30, 70))) for _ in range(400)]

    def describe(self):
        return "400 documents of words drawn with seed 0"
"""


@pytest.fixture
def plugin(own_plugins_of_a_test, tmp_path, monkeypatch):
    """The plugin's file; what it registers is forgotten afterwards."""
    monkeypatch.setattr(families, "FAMILIES", list(families.FAMILIES))
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))
    tiny_phi().save_pretrained(tmp_path / "phi")
    tiny_tokenizer().save_pretrained(tmp_path / "phi")
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN.format(folder=str(tmp_path / "phi"), words=TEXT.split()))
    return file


def test_a_run_on_the_model_the_sites_and_the_corpus_of_a_plugin_file(plugin, tmp_path, capsys):
    settings = {
        "--plugin": plugin, "--model": "small-phi", "--dataset": "drawn", "--arch": "topk", "--layer": 1,
        "--site": ("resid_post", "mlp_out", "attn_out"), "--width": 64, "--l0": 8, "--tokens": 2000, "--reuse": 4,
        "--batch-size": 200, "--eval-tokens": 300, "--context-size": 32, "--out": tmp_path / "run",
    }  # fmt: skip
    assert bench(*flags(settings), "--quiet") == 0
    records = [json.loads(file.read_text()) for file in (tmp_path / "run" / "records").glob("*delta_lm_loss.json")]
    assert {record["failure"] for record in records} == {None}
    assert {record["provenance"]["model"] for record in records} == {"small-phi"}
    assert {record["provenance"]["dataset"] for record in records} == {"400 documents of words drawn with seed 0"}
    layer = "model.layers.1"
    assert {record["sae"]["site"]["path"] for record in records} == {layer, f"{layer}.mlp", f"{layer}.self_attn.dense"}
    assert bench("ls", "models", "--plugin", plugin) == 0
    assert "small-phi      A small model of the Phi family." in capsys.readouterr().out


def test_the_documents_of_a_plugin_come_shuffled_by_the_seed(plugin):
    load_plugin(str(plugin))
    texts = CORPORA["drawn"]().documents()
    first = list(documents("drawn", order_seed=1))
    assert first != texts
    assert sorted(first) == sorted(texts)
    assert list(documents("drawn", order_seed=1)) == first != list(documents("drawn", order_seed=2))
    assert describe("drawn") == "400 documents of words drawn with seed 0"
    assert describe("some/dataset:config") == "some/dataset:config"


def test_a_corpus_that_is_no_text_is_refused(plugin):
    plugin.write_text(plugin.read_text().replace('" ".join', "len"))
    load_plugin(str(plugin))
    with pytest.raises(UserError, match=r'of "drawn" holds int, not text'):
        list(documents("drawn", order_seed=0))


def test_a_plugin_cannot_take_a_name_of_the_hub_or_of_a_built_in(plugin):
    plugin.write_text(plugin.read_text().replace("small-phi", "gpt2"))
    load_plugin(str(plugin))
    with pytest.raises(UserError, match=r'model "gpt2" is openai-community/gpt2 on the hub and a plugin.s too: rename'):
        resolve_model("gpt2")
    for name, mine in (("demo", "gpt2"), ("embedded", "drawn")):
        plugin.write_text(plugin.read_text().replace(f'("{mine}")', f'("{name}")'))
        with pytest.raises(UserError, match=rf'"{name}" of sae_bench_plugin_mine is taken by sae_bench\.demo\.'):
            load_plugin(str(plugin))
        plugin.write_text(plugin.read_text().replace(f'("{name}")', f'("{mine}")'))


def test_no_plug_in_runs_before_its_name_is_asked_for(monkeypatch):
    monkeypatch.setattr(MODELS, "_classes", {})
    monkeypatch.delitem(sys.modules, "sae_bench.demo.models.demo", raising=False)
    with pytest.raises(UserError, match=r'unknown model "demmo".*did you mean "demo"'):
        resolve_model("demmo")
    assert list(MODELS) == ["demo"]
    assert "sae_bench.demo.models.demo" not in sys.modules


def test_the_documented_example_registers_all_it_says(plugin):
    page = Path(__file__).parents[2] / "docs" / "add-a-model.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    plugin.write_text(code)
    load_plugin(str(plugin))
    assert resolve_model("our-phi") == ("our-phi", "/models/our-phi")
    assert describe("sums") == "sums of two numbers below 300"
    assert "7 plus 8 is 15." in list(documents("sums", order_seed=0))
    assert sites.find_site(tiny_phi(), "mlp_out", 2).path == "model.layers.2.mlp"
