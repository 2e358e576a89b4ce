"""Where text comes from: local files, data sets of the hub, and corpora that plug-ins bring."""

import glob
import hashlib
import logging
import random
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from sae_bench.errors import UserError, did_you_mean
from sae_bench.lm.near_duplicates import RULE, repeated_texts
from sae_bench.lm.nesting import check_nesting
from sae_bench.progress import quiet_hub
from sae_bench.records.content import content_hash
from sae_bench.records.files import digest_of, replacing
from sae_bench.records.kept import kept
from sae_bench.records.names import cache_folder
from sae_bench.registry import CORPORA

log = logging.getLogger(__name__)

BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}  # by file suffix
PACKED = (".gz", ".zst", ".bz2", ".xz")
"""Suffixes of compressed files, behind the others."""

SHUFFLE_BUFFER = 10_000  # documents of a stream held at once, to draw the next from


class Corpus(ABC):
    """Text that a plug-in brings, known by the name that it is registered under (`register_corpus`)."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raise it when the documents change and `describe` does not tell."""

    @abstractmethod
    def documents(self) -> Sequence[str]:
        """The same documents, in the same order, at every call; they are shuffled elsewhere."""

    def size(self) -> int | None:
        """Its letters, if they can be counted at once; None if the documents would have to be made first."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """What it is, for records: with the versions of everything that the documents depend on."""


def documents(source: str, *, order_seed: int, column: str = "text") -> Iterator[str]:
    """Yield the documents of `source` in an order shuffled by `order_seed`; blank ones are left out.

    `source` is the name of a plug-in's corpus; or a local file or folder (.txt, where a paragraph is a document,
    .jsonl, .json, .csv, .parquet; with .gz, .zst, .bz2 or .xz behind it, too); or a data set on the hub, as `name` or
    `name:config`, whose split "train" is streamed and shuffled within a buffer of 10,000 documents. `column` names the
    text in tables.

    UserError: no such source, no such column, no text in it, or no network to reach it.
    """
    empty = True
    for text in _texts(source, order_seed, column):
        if not isinstance(text, str | None):
            raise UserError(f'column "{column}" of "{source}" holds {type(text).__name__}, not text; name another')
        if text and not text.isspace():
            empty = False
            yield text
    if empty:
        raise UserError(f'the corpus "{source}" holds no text in column "{column}"; choose another corpus or column')


def describe(source: str) -> str:
    """What records call a corpus: a plug-in says it of its own, others are called as they were named."""
    return CORPORA[source]().describe() if source in CORPORA else source


def corpus_hash(source: str) -> str | None:
    """SHA-256 (hex) of what a corpus is: its files' names and content, or what a plug-in says of its own.

    None for a data set on the hub, which nobody reads whole. UserError: there is no such file or folder.
    """
    if source in CORPORA:
        corpus = CORPORA[source]()
        return digest_of([source, corpus.version, corpus.describe()])
    if not is_local(source):
        return None
    root, files = Path(source).expanduser(), _files(source)
    return digest_of([[file.relative_to(root).as_posix(), content_hash(file)] for file in files])


def is_local(source: str) -> bool:
    """Say whether `source` names a file or folder rather than a data set on the hub, which has one slash at most."""
    path = Path(source).expanduser()
    return path.exists() or _builder(path) is not None or source.startswith((".", "~", "/")) or source.count("/") > 1


def check_source(source: str) -> None:
    """See that a corpus can be there, without reading it; whether the hub has a data set shows once it is read.

    Raises:
        UserError: there is no such file, it is of no known kind, or the name can be none of the hub's.
    """
    if source in CORPORA:
        return
    if is_local(source):
        _kind(source, _files(source))
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:.+)?", source):
        raise UserError(
            f'"{source}" is no file here and no name of a data set, NAME or NAME:CONFIG{did_you_mean(source, CORPORA)}'
        )


def size_of(source: str) -> int | None:
    """Letters of a corpus, about: a plugin counts its own, those of plain text are its bytes; None if unknown."""
    if source in CORPORA:
        return CORPORA[source]().size()
    if not is_local(source):
        return None
    files = _files(source)
    return sum(file.stat().st_size for file in files) if all(file.suffix == ".txt" for file in files) else None


def repeated(source: str, column: str = "text") -> frozenset[int]:
    """Return the digests of held-out documents that training documents repeat (`near_duplicates.repeated_texts`).

    Of a data set on the hub, which nobody reads whole, none. Of others they are found once and cached, under a name
    made of the rules and the corpus: 0.6 CPU seconds for every MB of text, which is read twice.
    """
    about = corpus_hash(source)
    if about is None:
        return frozenset()
    key = hashlib.sha256(f"{RULE} digests 2 {column} {about}".encode()).hexdigest()[:12]
    return _repeated(source, column, f"repeated-{key}")


@cache
def _repeated(source: str, column: str, key: str) -> frozenset[int]:
    def find() -> list[str]:
        log.info("looking for repeated text in %s, once", source)
        found = repeated_texts(lambda: documents(source, order_seed=0, column=column))
        return [str(number) for number in sorted(found)]

    return frozenset(map(int, cached_texts(key, find)))


def cached_texts(key: str, make: Callable[[], Sequence[str]]) -> Sequence[str]:
    """Return the texts that the cache folder holds under `key`, made at the first call on a machine."""
    path = cache_folder() / f"{key}.parquet"
    return _read(kept(path, lambda place: _write(place, make())))


def is_cached(key: str) -> bool:
    """Whether the cache folder holds texts under `key`."""
    return (cache_folder() / f"{key}.parquet").exists()


def _write(path: Path, texts: Sequence[str]) -> None:
    import pandas as pd

    # Whoever reads the cache sees no file or a whole one; of two writers the last wins, with the same content.
    with replacing(path) as temporary:
        pd.DataFrame({"text": texts}).to_parquet(temporary)


@cache
def _read(path: Path) -> list[str]:
    import pandas as pd

    texts: list[str] = pd.read_parquet(path)["text"].tolist()
    return texts


def _texts(source: str, order_seed: int, column: str) -> Iterator[Any]:
    if source in CORPORA:
        texts = list(CORPORA[source]().documents())
        random.Random(order_seed).shuffle(texts)
        return iter(texts)
    return _local_texts(source, order_seed, column) if is_local(source) else _hub_texts(source, order_seed, column)


def _local_texts(source: str, order_seed: int, column: str) -> Iterator[Any]:
    import datasets

    files = _files(source)
    builder = _kind(source, files)
    options = {"sample_by": "paragraph"} if builder == "text" else {}
    files = [_unpacked(file) for file in files if file.stat().st_size]
    if not files:
        raise UserError(f'"{source}" holds no text: it is empty; choose another corpus')
    before = [content_hash(file) for file in files]
    places = [(str(file), file.stat().st_mtime_ns) for file in files]  # what the library tells files apart by, alone
    cache = cache_folder() / "datasets" / digest_of([builder, *before, *places])[:12]

    def make(cache: Path) -> Any:
        for file in files if builder == "json" else ():
            check_nesting(file)
        return load(cache)

    def load(cache: Path) -> Any:
        names = [glob.escape(str(file)) for file in files]
        rows = datasets.load_dataset(builder, data_files=names, split="train", cache_dir=str(cache), **options)
        if before != [content_hash(file) for file in files]:
            raise UserError(f'"{source}" was written to while it was read: wait until it is whole, and try again')
        return rows

    try:
        rows = load(kept(cache, make))
    except datasets.exceptions.DatasetGenerationError as error:
        raise UserError(f'"{source}" cannot be read as {builder}: {_one_line(error.__cause__ or error)}') from error
    _require_column(source, column, rows.column_names)
    for row in rows.select_columns(column).shuffle(seed=order_seed, keep_in_memory=True):
        yield row[column]


def _kind(source: str, files: Sequence[Path]) -> str:
    """How files are read."""
    builders = {_builder(file) for file in files}
    (builder,) = builders if len(builders) == 1 else (None,)
    if builder is None:
        found = ", ".join(sorted({file.suffix or file.name for file in files})) or "none"
        raise UserError(f'"{source}" must hold files of one kind among {", ".join(BUILDERS)}; it holds: {found}')
    return builder


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f'no file or folder "{source}"; check the path, or use one of: {", ".join(CORPORA)}')
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if _builder(file))


def _builder(path: Path) -> str | None:
    """How a file is read, by its suffix; what is compressed has another suffix before."""
    suffix = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    return BUILDERS.get(suffix)


def _unpacked(file: Path) -> Path:
    """The file; of one compressed with zstd, for which `datasets` needs another package, a copy that is not."""
    if file.suffix != ".zst":
        return file
    import pyarrow  # type: ignore[import-untyped]

    path = cache_folder() / f"unpacked-{content_hash(file)[:12]}{Path(file.stem).suffix}"

    def unpack(path: Path) -> None:
        with (
            replacing(path) as temporary,
            pyarrow.input_stream(str(file), compression="zstd") as packed,
            temporary.open("wb") as plain,
        ):
            try:
                shutil.copyfileobj(packed, plain)
            except OSError as error:
                raise UserError(f'"{file}" cannot be unpacked ({_one_line(error)}): get it again') from error

    return kept(path, unpack)


def _hub_texts(source: str, order_seed: int, column: str) -> Iterator[Any]:
    import datasets

    name, _, config = source.partition(":")
    try:
        with quiet_hub():
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
            f"or one of: {', '.join(CORPORA)}"
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
