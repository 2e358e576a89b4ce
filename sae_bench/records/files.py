"""Files that are written whole or not at all, and JSON that notices when it is changed."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from sae_bench.errors import UserError, one_line
from sae_bench.records.names import cache_folder
from sae_bench.records.redact import redact_json


class Damaged(UserError):
    """A sealed file is not what was written."""


TEMPORARY = ".sae-bench.tmp"
"""How the name of a file ends that is being written."""


def is_temporary(name: str) -> bool:
    """Whether `replacing` gave a file this name."""
    return re.fullmatch(rf"\..+\.\d+{re.escape(TEMPORARY)}", name) is not None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; then make that file durable and put it in the place of `path`, all or nothing.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # where no file could be made there is none to remove
            temporary.unlink()
        # safetensors has an exception of its own for a full disk.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            reason = getattr(error, "strerror", None) or error
            other = "folder with SAE_BENCH_CACHE" if path.is_relative_to(cache_folder()) else "--out"
            raise UserError(f"cannot write {path}: {reason}; free space or choose another {other}") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make a rename durable, where that can be asked for.

    Some network and FUSE file systems know no fsync of folders and answer EINVAL or ENOTSUP. The file itself is whole
    and has its name; a power failure may still bring the old one back, and a run goes on from there as from any kill.
    """
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably; errors as in `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder, by a name that another process or machine gave.

    Raises:
        UserError: it leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:  # links in it are its owner's
        raise UserError(f'"{name}" is no path in {folder}: give one that does not lead out of it')
    return folder / name


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused, for no reader agrees on them."""
    write_text(path, _as_text(content))


def _as_text(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with a checksum of itself, and without the secrets that an error's text may have brought in."""
    write_bytes(path, sealed_bytes(as_sealed(content)))


def sealed_bytes(clean: Mapping[str, Any]) -> bytes:
    """What `write_sealed` writes of a content that holds no secrets."""
    return _as_text({**clean, "seal": digest_of(clean)}).encode()


def as_sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A content as `read_sealed` gives it once it was written."""
    return dict(redact_json(json.loads(json.dumps(content, allow_nan=False))))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises:
        Damaged: it is something else now.
        UserError: it cannot be read.
    """
    text = _read(path)
    content = _parsed(path, text)
    try:
        seal = content.pop("seal")
        with suppress(ValueError):  # it is laid out otherwise
            if _digest_as_written(text, seal) == seal:
                return dict(content)
        if _digest_as_read(text) == seal:
            return dict(content)
    except (AttributeError, KeyError, TypeError, RecursionError):
        pass  # JSON, but not an object with a seal, or with a key twice, or deeper than can be written
    raise Damaged(f"{path} is not what was written (its checksum differs): delete it and run the same command again")


def pieces_of(text: bytes) -> list[bytes]:
    """What stands between the commas of an object as `write_sealed` lays it out: `name": value`.

    Only there does a line begin with one space, and in JSON lines break between parts, never in a text.

    Raises:
        ValueError: it is no whole object, or laid out otherwise.
    """
    if not (text.startswith(b'{\n "') and text.endswith(b"\n}\n")):
        raise ValueError("laid out otherwise")
    return text.removeprefix(b'{\n "').removesuffix(b"\n}\n").split(b',\n "')


def as_hashed(piece: bytes, value: object = None) -> bytes:
    """A piece as `digest_of` has it: on one line and in ASCII. Its numbers are not written anew, which takes longer.

    `value`: what it says, if that is known. Of numbers under names, as sums by document are, all space is layout: that
    takes a quarter of the time.
    """
    if isinstance(value, dict) and piece.count(b'"') == 1 + 2 * len(value) and all(map(str.isidentifier, value)):
        line = piece.translate(None, b" \n").replace(b":", b": ").replace(b",", b", ")
    else:
        line = b"".join(map(bytes.lstrip, piece.replace(b",\n", b", \n").split(b"\n")))
    if line.isascii() and b"\x7f" not in line:
        return line
    return re.sub(r"[^\x00-\x7e]+", lambda found: json.dumps(found[0])[1:-1], line.decode()).encode()


def digest_of_pieces(pieces: Sequence[bytes]) -> str:
    """`digest_of` an object of these pieces, as hashed."""
    return hashlib.sha256(b'{"' + b', "'.join(pieces) + b"}" if pieces else b"{}").hexdigest()


def _digest_as_written(text: bytes, seal: str) -> str:
    pieces = pieces_of(text)
    pieces.remove(f'seal": "{seal}"'.encode())
    return digest_of_pieces([*map(as_hashed, pieces)])


def _digest_as_read(text: bytes) -> str:
    """`digest_of` the rest of a file, however it is laid out, if its keys are in their order."""
    content = json.loads(text, object_pairs_hook=_each_once)
    del content["seal"]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise KeyError("a key stands there twice")
    return found


@contextmanager
def of_our_form(path: Path, *also: type[Exception]) -> Iterator[None]:
    """What a file makes of its readers that is sealed and says other things than ours do: one line.

    Raises:
        UserError: within the block something is missing, or of another kind; `also` are more exceptions that say so.
    """
    foreign: tuple[type[Exception], ...] = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, *also)
    try:
        yield
    except UserError:
        raise
    except foreign as error:
        why = f"{type(error).__name__}: {one_line(str(error))}"
        raise UserError(
            f"{path} is of another form than this version writes ({why:.120}): delete it and run the same command again"
        ) from error


def check_bytes(path: Path, content: Mapping[str, Any]) -> None:
    """See that a file is to the byte what `write_sealed` made of its content: what is read alike may have been changed.

    Raises:
        Damaged: it is not.
    """
    if path.read_bytes() != sealed_bytes(content):
        raise Damaged(f"{path} is not to the byte what was written: delete it and run the same command again")


def digest_of(content: Any) -> str:
    """SHA-256 (hex) of the canonical JSON: two contents share it if they are the same."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing or no JSON.
    """
    return _parsed(path, _read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _parsed(path: Path, text: bytes) -> Any:
    """JSON as values; half a character that is escaped, and could not be written again, is none."""
    try:
        return from_json(text)
    except ValueError as error:
        raise Damaged(f"{path} is not valid JSON ({error}); delete it and run the same command again") from None


def sha256(path: Path) -> str:
    """The file's SHA-256 (hex)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
