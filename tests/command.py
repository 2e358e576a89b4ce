"""The command line as tests run it: in this process, on a tiny model and a corpus in words that the model knows."""

import json
import random
from pathlib import Path

import pandas as pd
import pytest
from tiny import TEXT

from sae_bench.cli.main import main


def bench(*arguments: object) -> int:
    """Run the command line and return its exit code."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def flags(settings: dict[str, object]) -> list[object]:
    """Settings by flag as arguments; a tuple is several values."""
    return [
        part for flag, value in settings.items() for part in (flag, *(value if isinstance(value, tuple) else (value,)))
    ]


def small_run(model: Path, corpus: Path, out: Path) -> dict[str, object]:
    """Settings of a run of a few seconds, by flag."""
    return {
        "--arch": "topk", "--model": model, "--layer": 1, "--dataset": corpus, "--width": 64, "--l0": 8,
        "--tokens": 1000, "--reuse": 2, "--batch-size": 256, "--eval-tokens": 300, "--context-size": 32, "--out": out,
    }  # fmt: skip


def complaint(capsys: pytest.CaptureFixture[str], changed: dict[str, object], out: Path) -> str:
    """The one line on stderr of a command that fails before it writes anything."""
    assert bench(*flags(changed), "--quiet") == 2
    assert not out.exists()
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return line


def write_corpus(path: Path, n_documents: int = 400) -> Path:
    """Short documents, at 400 some 20,000 tokens, one in ten held out."""
    words, draw = TEXT.split(), random.Random(0)
    texts = (" ".join(draw.choices(words, k=draw.randint(30, 70))) for _ in range(n_documents))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_labelled(path: Path, n: int = 60, column: str = "text") -> Path:
    """A set of n texts with one of two labels each, in the kind of file that its name ends in."""
    words = TEXT.split()
    rows = [{column: " ".join(words[i : i + 7]), "label": ["no", "yes"][i % 2]} for i in range(n)]
    table = pd.DataFrame(rows)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
