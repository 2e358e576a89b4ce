"""What the cache folder keeps: sealed when it is made, checked when a process first reads it, made again if damaged.

Beside a file or folder stands `.<name>.kept.json`, with size and SHA-256 of every file. What has none was torn while
it was made, or is from before there were any.

A folder that cannot be written, as a home that is read-only, ends no command: what is whole there is read, and what is
not stands in a temporary folder for as long as the process lasts. A word says so, once.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from sae_bench.errors import UserError
from sae_bench.records.files import read_sealed, sha256, write_sealed
from sae_bench.records.names import cache_folder
from sae_bench.records.ownership import walk

log = logging.getLogger(__name__)

_checked: set[Path] = set()
"""What this process found whole, or made."""

_elsewhere: dict[Path, Path] = {}
"""Where this process has what the cache folder cannot take."""


def kept(path: Path, make: Callable[[Path], None]) -> Path:
    """The path of a file or folder of the cache, which `make` makes if it is missing or damaged: where, it is told.

    Where the cache folder cannot be written the path is one of a temporary folder.

    Raises:
        UserError: it cannot be made; if it was damaged, the message names it.
    """
    path = _elsewhere.get(path, path)
    if path in _checked and _is_there(path):
        return path
    with _locked(path):
        if (problem := _problem(path)) is not None:
            if (reason := _why_unwritable(path.parent)) is not None:
                return _kept_here(path, make, reason)
            try:
                _make_again(path, make, problem)
                _seal(path)
            except OSError as error:
                raise UserError(
                    f"{problem}, and cannot be made here ({error}): free space or choose another folder with "
                    "SAE_BENCH_CACHE"
                ) from error
    return path


def _kept_here(path: Path, make: Callable[[Path], None], reason: str) -> Path:
    """What cannot be made at a path, in a folder of this process."""
    _tell(cache_folder(), reason)
    here = Path(tempfile.mkdtemp(dir=_own_folder().name)) / path.name
    make(here)
    _checked.add(here)
    _elsewhere[path] = here
    return here


@cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """It goes with the process."""
    return tempfile.TemporaryDirectory(prefix="sae_bench-cache-")


@cache
def _tell(folder: Path, reason: str) -> None:
    log.warning(
        "the cache folder %s cannot be written (%s): this goes on without, and what it would keep is made again by "
        "every command; SAE_BENCH_CACHE names another folder",
        folder,
        reason,
    )


def _why_unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder of the cache; None: one can, the folder itself if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """Write a sealed file of the cache; where that cannot be done a word says so, for nothing depends on it."""
    try:
        write_sealed(path, content)
    except UserError as error:
        _tell(cache_folder(), _why_unwritable(path.parent) or str(error))


def _is_there(path: Path) -> bool:
    """Whether a path exists; what may not be looked at does not."""
    try:
        return path.exists()
    except OSError:
        return False


def _make_again(path: Path, make: Callable[[Path], None], problem: str) -> None:
    """What is damaged stays until there is something better, also where the making is interrupted."""
    aside = path.with_name(f".{path.name}.damaged")
    damaged = path.exists()
    if damaged:
        log.warning("%s: it is made again", problem)
        _discard(aside)
        path.rename(aside)
    try:
        make(path)
    except BaseException as error:
        _discard(path)
        if damaged:
            aside.rename(path)
        if damaged and isinstance(error, UserError):
            raise UserError(f"{problem}, and cannot be made again: {error}") from None
        raise
    _discard(aside)


def read_kept(path: Path) -> dict[str, Any]:
    """What a sealed file of the cache says; nothing where there is none, or, with a word, where it is damaged.

    The word is said once: a damaged file goes.
    """
    if not _is_there(path):
        return {}
    try:
        return read_sealed(path)
    except UserError:
        log.warning("%s is damaged, unreadable or of an earlier version: what it held is measured anew", path)
        with suppress(OSError):  # where nothing can be written it is said again
            path.unlink()
        return {}


def _seal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.kept.json")


def _seal(path: Path) -> None:
    files = {str(file.relative_to(path.parent)): [file.stat().st_size, sha256(file)] for file in _files(path)}
    write_sealed(_seal_of(path), {"files": files})
    _checked.add(path)


def _files(path: Path) -> list[Path]:
    """Locks of libraries come and go."""
    found = sorted(walk(path)) if path.is_dir() else [path]
    return [file for file in found if file.suffix != ".lock" and not file.is_symlink()]


def _problem(path: Path) -> str | None:
    """What is wrong with what is kept at a path; None: nothing."""
    if not _is_there(path):
        return f"{path} is missing"
    try:
        files = read_sealed(_seal_of(path))["files"]
        for name, (size, digest) in files.items():
            file = path.parent / name
            if not file.is_file() or file.stat().st_size != size or sha256(file) != digest:
                return f"{file} is damaged"
    except (UserError, KeyError, TypeError, ValueError):
        return f"{path} has no seal, or a damaged one"
    _checked.add(path)
    return None


def _discard(path: Path) -> None:
    """The cache folder is ours, whatever is in it; a link is cut, not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time looks at what is kept and makes it."""
    with ExitStack() as stack:
        # Of a folder that others filled, that cannot be written or has no locks, what is whole is read all the same.
        with suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_name(f".{path.name}.lock")))
        yield
