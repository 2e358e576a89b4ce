"""The embedded corpus: which docstrings are in it, and that they are read once a machine."""

import logging
import random
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sae_bench.demo.corpora import embedded
from sae_bench.demo.corpora.embedded import PACKAGES, Docstrings, docstrings, extract
from sae_bench.lm import corpus
from sae_bench.lm.corpus import describe, documents
from sae_bench.records.names import cache_folder

LONG = "A sentence that is repeated until the docstring is long enough to count. " * 4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    source = f'''
        """Module. {LONG}"""
        class C:
            """Class.

                {LONG}"""
            async def f(self):
                """Function. {LONG}"""
            def g(self):
                "short"
            def twin(self):
                """Module. {LONG}"""
        raise RuntimeError("the corpus must never run what it reads")
    '''
    (folder / "b.py").write_text(textwrap.dedent(source))
    (folder / "a.py").write_text(f'"""First by path. {LONG} \\d"""\n')
    (folder / "template.py").write_text("class {{ name }}:\n    pass\n")
    return folder


def test_extract_takes_each_long_docstring_once_in_order(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=embedded.__name__):
        found = extract([package])
    assert [text.split(maxsplit=1)[0] for text in found] == ["First", "Module.", "Class.", "Function."]
    assert "1 files of the embedded corpus are not Python" in caplog.text


def test_docstrings_are_dedented() -> None:
    assert list(docstrings(b'def f():\n    """One.\n\n      Two.\n    """\n')) == ["One.\n\nTwo."]


def test_the_embedded_corpus_is_cached_by_the_versions(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_package_folder", lambda name: package)
    first = Docstrings().documents()
    (package / "a.py").unlink()
    assert Docstrings().documents() == first
    corpus._read.cache_clear()  # as a new process would find it
    assert Docstrings().documents() == first
    assert len(list(cache_folder().glob("[!.]*"))) == 1, "temporary files were left behind"
    monkeypatch.setattr(embedded, "version", lambda name: "99")
    assert len(Docstrings().documents()) == len(first) - 1


def test_a_new_process_reads_the_cache_within_a_second(package: Path) -> None:
    many = [f"{number} {LONG}" for number in range(20_000)]
    path = cache_folder() / "corpus.parquet"
    corpus._write(path, many)
    started = time.perf_counter()
    assert corpus._read(path) == many
    assert time.perf_counter() - started < 1


def test_describe_names_every_package_with_its_version() -> None:
    assert describe("embedded").startswith("docstrings of scipy 1.")
    assert all(f"{name} " in describe("embedded") for name in PACKAGES)


def test_finding_a_package_does_not_import_it() -> None:
    loaded = "scipy" in sys.modules
    assert (embedded._package_folder("scipy") / "__init__.py").exists()
    assert ("scipy" in sys.modules) == loaded


WORDS = [f"document\nnumber {number}" for number in range(50)]


def test_embedded_documents_come_shuffled_and_the_list_stays(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Docstrings, "documents", lambda self: WORDS)
    expected = list(WORDS)
    random.Random(3).shuffle(expected)
    assert list(documents("embedded", order_seed=3)) == expected != WORDS
