"""Where text comes from: local files, plug-ins, and the hub's data sets (simulated, no network)."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow
import pytest

from sae_bench.errors import UserError
from sae_bench.lm.corpus import documents
from sae_bench.records import kept as of_kept


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))


WORDS = [f"document\nnumber {number}" for number in range(50)]


def _as_text(folder: Path) -> Path:
    (folder / "corpus.txt").write_text("\n\n".join(WORDS) + "\n\n\n\n   \n\n")
    return folder / "corpus.txt"


def _as_jsonl(folder: Path) -> Path:
    pd.DataFrame({"text": WORDS, "other": 1}).to_json(folder / "corpus.jsonl", orient="records", lines=True)
    return folder / "corpus.jsonl"


def _as_parquet(folder: Path) -> Path:
    pd.DataFrame({"text": [*WORDS, None, "  "], "n": 1}).to_parquet(folder / "corpus.parquet")
    return folder / "corpus.parquet"


def _as_folder(folder: Path) -> Path:
    _as_jsonl(folder)
    return folder


def _as_csv(folder: Path) -> Path:
    pd.DataFrame({"text": WORDS, "other": 1}).to_csv(folder / "corpus.csv", index=False)
    return folder / "corpus.csv"


def _with_brackets(folder: Path) -> Path:
    """A name that is a pattern to whoever takes it for one, and matches nothing."""
    return _as_jsonl(folder).rename(folder / "data[1]*.jsonl")


def _packed(write: Callable[[Path], Path], suffix: str, codec: str) -> Callable[[Path], Path]:
    def packed(folder: Path) -> Path:
        plain = write(folder)
        path = plain.with_name(plain.name + suffix)
        with pyarrow.output_stream(str(path), compression=codec) as stream:
            stream.write(plain.read_bytes())
        plain.unlink()
        return path

    return packed


FILES = {
    "text": _as_text, "jsonl": _as_jsonl, "parquet": _as_parquet, "folder": _as_folder, "csv": _as_csv,
    "brackets": _with_brackets, "txt.gz": _packed(_as_text, ".gz", "gzip"), "csv.gz": _packed(_as_csv, ".gz", "gzip"),
    "jsonl.gz": _packed(_as_jsonl, ".gz", "gzip"), "jsonl.zst": _packed(_as_jsonl, ".zst", "zstd"),
    "txt.zst": _packed(_as_text, ".zst", "zstd"),
}  # fmt: skip


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_local_documents_are_all_there_in_a_seeded_order(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    source = str(write(folder))
    first = list(documents(source, order_seed=1))
    assert sorted(first) == sorted(WORDS)
    assert first != WORDS
    assert list(documents(source, order_seed=1)) == first
    assert list(documents(source, order_seed=2)) != first


def _first(source: str, column: str = "text") -> str:
    return next(documents(source, order_seed=0, column=column))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r'no file or folder "\./nowhere\.txt"'):
        _first("./nowhere.txt")


def test_a_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'no column "texts" in .*did you mean "text"\? known: n, text'):
        _first(str(_as_parquet(tmp_path)), column="texts")


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'column "n" of .* holds int, not text'):
        _first(str(_as_parquet(tmp_path)), column="n")


@pytest.mark.parametrize("suffix", [".jsonl", ".json.gz"])
def test_json_that_is_nested_too_deeply_for_its_parser_is_one_line(tmp_path: Path, suffix: str) -> None:
    """Which would end the process; brackets in texts are no nesting."""
    path = tmp_path / f"deep{suffix}"
    fine, deep = {"text": "[{" * 500 + '\\"'}, '{"text": "a", "b": ' + "[" * 50_000 + "]" * 50_000 + "}"
    text = json.dumps(fine) + "\n" + deep + "\n"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    with pytest.raises(UserError, match=r"deep\..*line 2: objects and lists more than 200 deep"):
        _first(str(path))
    path = path.with_name(f"fine{suffix}")
    text = json.dumps(fine) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert _first(str(path)) == fine["text"]


def test_a_damaged_cache_of_a_table_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = str(_as_jsonl(tmp_path))
    before = sorted(documents(source, order_seed=0))
    (arrow,) = (tmp_path / "cache").rglob("*.arrow")
    content = bytearray(arrow.read_bytes())
    content[content.index(WORDS[0].encode())] ^= 1
    arrow.write_bytes(content)
    monkeypatch.setattr(of_kept, "_checked", set())  # as a new process would find it
    assert sorted(documents(source, order_seed=0)) == before
    assert f"{arrow} is damaged: it is made again" in caplog.text


def test_a_blank_corpus_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["", " \n"]}).to_parquet(tmp_path / "blank.parquet")
    with pytest.raises(UserError, match="holds no text"):
        _first(str(tmp_path / "blank.parquet"))


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "zero.jsonl").touch()
    with pytest.raises(UserError, match="holds no text: it is empty"):
        _first(str(tmp_path / "zero.jsonl"))


def test_a_damaged_zst_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.zst").write_bytes(b"no such thing")
    with pytest.raises(UserError, match="cannot be unpacked"):
        _first(str(tmp_path / "x.jsonl.zst"))


def test_a_folder_of_mixed_or_unknown_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"files of one kind among .*it holds: none"):
        _first(str(tmp_path / "empty"))
    _as_text(tmp_path)
    _as_jsonl(tmp_path)
    with pytest.raises(UserError, match=r"it holds: \.jsonl, \.txt"):
        _first(str(tmp_path))


def test_a_malformed_file_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("this is no json\n")
    with pytest.raises(UserError, match=r'bad\.jsonl" cannot be read as json: ') as caught:
        _first(str(tmp_path / "bad.jsonl"))
    assert "\n" not in str(caught.value)


def test_the_hub_is_streamed_with_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load(*args: Any, **options: Any) -> datasets.IterableDataset:
        calls.append((args, options))
        return datasets.IterableDataset.from_generator(lambda: ({"body": word, "id": 1} for word in WORDS))

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = list(documents("someone/words:english", order_seed=5, column="body"))
    assert sorted(found) == sorted(WORDS)
    assert found != WORDS
    assert calls == [(("someone/words", "english"), {"split": "train", "streaming": True})]
    with pytest.raises(UserError, match=r'no column "text" in "words".*known: body, id'):
        _first("words")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("x"), 'no data set "someone/words" on the hub'),
        (ConnectionError("x"), r'"someone/words" cannot be reached \(ConnectionError\); check the network'),
        (
            ValueError("Config name is missing.\nPick: ['a']"),
            r"Config name is missing\. Pick: \['a'\]; write name:conf",
        ),
    ],
)
def test_trouble_with_the_hub_is_explained(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=message):
        _first("someone/words")
