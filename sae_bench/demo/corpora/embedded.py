"""The embedded corpus: docstrings of the scientific stack, which are on every machine already.

Some 18 MB of edited technical prose: enough for a short run without network or data set. They are read out of the
installed source files with `ast`, so nothing is imported; a document is one docstring of a module, class or function.
Parsing 7,500 files takes the better part of a minute, so the result is cached under a name made of the packages'
versions: another version is another corpus.
"""

import ast
import hashlib
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from sae_bench.lm.corpus import Corpus, cached_texts, is_cached
from sae_bench.registry import register_corpus

log = logging.getLogger(__name__)

PACKAGES = ("scipy", "pandas", "torch", "transformers")
MIN_CHARACTERS = 200  # shorter docstrings are mostly stubs: "See `numpy.sum`."


@register_corpus("embedded")
class Docstrings(Corpus):
    """Distinct docstrings of at least 200 characters, in an order that depends on nothing else.

    The first use on a machine parses the packages' source (under a minute); later ones read the cache (well under a
    second).
    """

    version = 1  # raise it when the rules below change, so that no cache made by other rules is read

    def describe(self) -> str:
        """The packages with their versions on this machine: `docstrings of scipy 1.17.1, pandas 3.1.1, ...`."""
        return "docstrings of " + ", ".join(f"{package} {version(package)}" for package in PACKAGES)

    def documents(self) -> Sequence[str]:
        return cached_texts(self._key(), self._extract)

    def size(self) -> int | None:
        return sum(map(len, self.documents())) if is_cached(self._key()) else None

    def _key(self) -> str:
        about = f"{self.version} {MIN_CHARACTERS} {self.describe()}"
        return f"corpus-{hashlib.sha256(about.encode()).hexdigest()[:12]}"

    def _extract(self) -> list[str]:
        log.info("extracting the embedded corpus (%s), once", self.describe())
        return extract(_package_folder(package) for package in PACKAGES)


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
