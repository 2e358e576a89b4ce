"""Where text comes from: local files, data sets of the hub, and the corpus that is on every machine already.

That embedded corpus is the docstrings of the scientific stack, some 18 MB of edited technical prose: enough for a
short run without network or data set. They are read out of the installed source files with `ast`, so nothing is
imported; a document is one docstring of a module, class or function. Parsing 7,500 files takes the better part of
a minute, so the result is cached under a name made of the packages' versions: another version is another corpus.
"""

import ast
import hashlib
import importlib.util
import inspect
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError, did_you_mean
from sae_bench.lm.near_duplicates import RULE, repeated_texts
from sae_bench.records.names import cache_folder

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}  # by file suffix
SHUFFLE_BUFFER = 10_000  # documents of a stream held at once, to draw the next from
PACKAGES = ("scipy", "pandas", "torch", "transformers")
MIN_CHARACTERS = 200  # shorter docstrings are mostly stubs: "See `numpy.sum`."
EXTRACTION = 1  # raise it when the rules below change, so that no cache made by other rules is read


def documents(source: str, *, order_seed: int, column: str = "text") -> Iterator[str]:
    """Yield the documents of `source` in an order shuffled by `order_seed`; blank ones are left out.

    `source` is "embedded"; or a local file or folder (.txt, where a paragraph is a document, .jsonl, .json,
    .parquet); or a data set on the hub, as `name` or `name:config`, whose split "train" is streamed and shuffled within
    a buffer of 10,000 documents. `column` names the text in tables.

    UserError: no such source, no such column, no text in it, or no network to reach it.
    """
    if source == EMBEDDED:
        texts = list(embedded_documents())
        random.Random(order_seed).shuffle(texts)
        yield from texts
        return
    empty = True
    for text in (
        _local_texts(source, order_seed, column) if is_local(source) else _hub_texts(source, order_seed, column)
    ):
        if not isinstance(text, str | None):
            raise UserError(f'column "{column}" of "{source}" holds {type(text).__name__}, not text; name another')
        if text and not text.isspace():
            empty = False
            yield text
    if empty:
        raise UserError(f'the corpus "{source}" holds no text in column "{column}"; choose another corpus or column')


def is_local(source: str) -> bool:
    """Say whether `source` names a file or folder rather than a data set on the hub, which has one slash at most."""
    path = Path(source).expanduser()
    return path.exists() or path.suffix in BUILDERS or source.startswith((".", "~", "/")) or source.count("/") > 1


def repeated(source: str, column: str = "text") -> frozenset[int]:
    """Return the digests of held-out documents that training documents repeat (`near_duplicates.repeated_texts`).

    Of a data set on the hub, which nobody reads whole, none. Of others they are found once and cached, under a name
    made of the rules and the corpus: 0.6 CPU seconds for every MB of text, which is read twice.
    """
    if source == EMBEDDED:
        about: object = _extraction_key()
    elif is_local(source):
        about = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in _files(source)]
    else:
        return frozenset()
    key = hashlib.sha256(f"{RULE} {column} {about}".encode()).hexdigest()[:12]
    return _repeated(source, column, cache_folder() / f"repeated-{key}.parquet")


@cache
def _repeated(source: str, column: str, cached: Path) -> frozenset[int]:
    if not cached.exists():
        log.info("looking for repeated text in %s, once", source)
        found = repeated_texts(lambda: documents(source, order_seed=0, column=column))
        _write(cached, [str(number) for number in sorted(found)])
    return frozenset(map(int, _read(cached)))


def _extraction_key() -> str:
    return hashlib.sha256(f"{EXTRACTION} {MIN_CHARACTERS} {describe()}".encode()).hexdigest()[:12]


def describe() -> str:
    """Say what the embedded corpus is on this machine, for records: `docstrings of scipy 1.17.1, pandas 3.1.1, ...`."""
    return "docstrings of " + ", ".join(f"{package} {version(package)}" for package in PACKAGES)


def embedded_documents() -> list[str]:
    """Return the corpus: distinct docstrings of at least 200 characters, in an order that depends on nothing else.

    The first call on a machine parses the packages' source (under a minute); later ones read the cache (well
    under a second).
    """
    cached = cache_folder() / f"corpus-{_extraction_key()}.parquet"
    if not cached.exists():
        log.info("extracting the embedded corpus (%s), once", describe())
        _write(cached, extract(_package_folder(package) for package in PACKAGES))
    return _read(cached)


def extract(folders: Iterable[Path], min_characters: int = MIN_CHARACTERS) -> list[str]:
    """Return the distinct docstrings in the .py files below `folders`, in order of folder, path and line.

    Files that are not Python (templates, syntax of another version) are skipped, counted and logged.
    """
    documents: dict[str, None] = {}  # a dict, because a set would lose the order
    n_skipped = 0
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # parsing is all CPU: one process a core
        for path, found in zip(paths, pool.map(_docstrings_in, paths, chunksize=64), strict=True):
            if found is None:
                n_skipped += 1
                log.debug("%s is not Python", path)
            else:
                documents.update(dict.fromkeys(text for text in found if len(text) >= min_characters))
    if n_skipped:
        log.info("%d files of the embedded corpus are not Python and were skipped", n_skipped)
    return list(documents)


def _docstrings_in(path: Path) -> list[str] | None:
    try:
        return list(docstrings(path.read_bytes()))
    except SyntaxError:
        return None


def docstrings(source: bytes) -> Iterator[str]:
    """Yield the dedented docstrings of the modules, classes and functions in `source`, outermost first.

    SyntaxError when `source` is not Python.
    """
    with warnings.catch_warnings():
        # Other people's invalid escapes ("\d") are no concern of our user.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield inspect.cleandoc(text)


def _package_folder(package: str) -> Path:
    # For a top-level name, find_spec looks for the files and runs nothing.
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is a dependency"
    assert spec.submodule_search_locations, f"{package} is not a folder"
    return Path(spec.submodule_search_locations[0])


def _write(path: Path, documents: list[str]) -> None:
    import pandas as pd

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="extracting-") as scratch:
        # Whoever reads the cache sees no file or a whole one; of two writers the last wins, with the same content.
        partial = Path(scratch) / path.name
        pd.DataFrame({"text": documents}).to_parquet(partial)
        os.replace(partial, path)


@cache
def _read(path: Path) -> list[str]:
    import pandas as pd

    texts: list[str] = pd.read_parquet(path)["text"].tolist()
    return texts


def _local_texts(source: str, order_seed: int, column: str) -> Iterator[Any]:
    import datasets

    files = _files(source)
    builders = {BUILDERS.get(file.suffix) for file in files}
    if len(builders) != 1 or None in builders:
        found = ", ".join(sorted({file.suffix or file.name for file in files})) or "none"
        raise UserError(f'"{source}" must hold files of one kind among {", ".join(BUILDERS)}; it holds: {found}')
    (builder,) = builders
    options = {"sample_by": "paragraph"} if builder == "text" else {}
    try:
        rows = datasets.load_dataset(
            builder,
            data_files=[str(file) for file in files],
            split="train",
            cache_dir=str(cache_folder() / "datasets"),
            **options,
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise UserError(f'"{source}" cannot be read as {builder}: {_one_line(error.__cause__ or error)}') from error
    _require_column(source, column, rows.column_names)
    for row in rows.select_columns(column).shuffle(seed=order_seed, keep_in_memory=True):
        yield row[column]


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f'no file or folder "{source}"; check the path, or use the corpus "{EMBEDDED}"')
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in BUILDERS)


def _hub_texts(source: str, order_seed: int, column: str) -> Iterator[Any]:
    import datasets

    name, _, config = source.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split="train", streaming=True)
        # A stream may not know its columns before its first row.
        _require_column(source, column, rows.column_names or list(next(iter(rows), {column: ""})))
        for row in rows.select_columns(column).shuffle(seed=order_seed, buffer_size=SHUFFLE_BUFFER):
            yield row[column]
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f'no file "{source}" here and no data set "{name}" on the hub that you may read; check the name, or log in '
            "with: hf auth login"
        ) from error
    except OSError as error:
        raise UserError(
            f'the data set "{name}" cannot be reached ({type(error).__name__}); check the network, or use a local file '
            f'or the corpus "{EMBEDDED}"'
        ) from error
    except UserError:
        raise
    except ValueError as error:  # an unknown configuration or split: the message lists those there are
        raise UserError(f'the data set "{source}" cannot be opened: {_one_line(error)}; write name:config') from error


def _require_column(source: str, column: str, columns: list[str]) -> None:
    if column not in columns:
        raise UserError(f'no column "{column}" in "{source}"{did_you_mean(column, columns)}')


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
