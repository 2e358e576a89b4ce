"""Natural text: which of the package's texts are in it, and that no probe is asked about any of them."""

import pandas as pd
import pyarrow
import pytest

from sae_bench.demo.corpora import natural
from sae_bench.demo.corpora.natural import NaturalText
from sae_bench.errors import UserError
from sae_bench.lm.corpus import describe
from sae_bench.probing.sets import SMALL
from sae_bench.runs.config import RunConfig

NEWS = [f"News {i} of this day, and what people say about it in town. " * 5 for i in range(24)]


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A package with the small sets, one of news, one of the same news with other labels, and one of code."""
    sets = {name: [f"{name} {i}" for i in range(24)] for name in SMALL}
    sets[SMALL[0]][0] = NEWS[3]  # a probe asks about this one
    sets |= {
        "8_news": [*NEWS[:23], "Short."],
        "9_same_news": NEWS,
        "158_code_C": ["int main() { return 0; } " * 20] * 24,
    }
    data = tmp_path / "sae_probes" / "data"
    data.mkdir(parents=True)
    (tmp_path / "sae_probes" / "__init__.py").touch()  # before one that is installed
    master = pd.DataFrame({"Data type": "Binary Classification", "Dataset save name": [f"{name}.csv" for name in sets]})
    tables = {"probing_datasets_MASTER": master}
    tables |= {name: pd.DataFrame({"prompt": texts, "target": [0, 1] * 12}) for name, texts in sets.items()}
    for name, table in tables.items():
        with pyarrow.output_stream(str(data / f"{name}.csv.zst"), compression="zstd") as stream:
            stream.write(table.to_csv(index=False).encode())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(natural, "version", lambda package: "0.4.2")
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))


def test_it_has_each_long_text_once_but_for_code_and_what_probes_are_asked_about():
    found = NaturalText().documents()
    assert list(found) == [text for i, text in enumerate(NEWS) if i != 3]
    assert "sae-probes 0.4.2" in describe("natural")


def test_probes_are_not_asked_about_text_that_was_trained_on():
    settings = {"archs": ("topk",), "model": "demo", "dataset": "natural"}
    RunConfig.build(settings | {"probe_sets": ("small", SMALL[2])})
    with pytest.raises(UserError, match="--probe-sets 8_news: --dataset natural has these texts"):
        RunConfig.build(settings | {"probe_sets": (SMALL[2], "8_news")})
