"""What a file of tensors says of itself, read and checked before any of it is allocated.

A stranger's file may claim anything: more bytes than it has, members that overlap, objects that are code. Each format
has a header that can be read alone. Nothing goes on to a loader unless every tensor it names lies within the file as it
is on the disk, so that loading can take no more memory than the file has bytes.
"""

import json
import math
import os
import pickletools
import re
import stat
import zipfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from sae_bench.errors import UserError

MAX_TEXT = 4 << 20
"""Bytes of a configuration, of safetensors' header, of a pickle without its tensors: theirs have some thousands."""

DTYPES = ("F32", "F16", "BF16", "F64")
"""Number types of weights, by safetensors' names; float64 is rounded to float32."""

SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of a number of each type that a tensor nobody asks for may have."""

PICKLED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Float|Half|BFloat16|Double|Long|Int|Short|Char|Byte|Bool)Storage"
)
"""All that a pickled dictionary of tensors names. Whatever else is named could be made to run, or to take memory."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every tensor in a file, by its name."""


@contextmanager
def regular(path: Path) -> Iterator[BufferedReader]:
    """Open a file that is one: a link, which could lead anywhere, and a pipe, which could wait forever, are refused.

    Raises:
        UserError: it is not, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        why = "is a symbolic link: give the file itself" if path.is_symlink() else f"cannot be read: {error.strerror}"
        raise UserError(f"{path} {why}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no regular file: give a copy of it")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_settings(path: Path) -> dict[str, Any]:
    """Read a configuration in JSON, which has to be an object.

    Raises:
        UserError: it is something else.
    """
    with regular(path) as file:
        text = file.read(MAX_TEXT + 1)
    try:
        if len(text) > MAX_TEXT:
            raise ValueError("it is too long for a configuration")
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    return settings


def damaged(path: Path, reason: str) -> UserError:
    """What is said of a file that is not what its format asks for."""
    return UserError(f"{path} is damaged, or no file of its format: {reason}; get it again")


def safetensors_shapes(path: Path, wanted: Container[str] | None = None) -> Shapes:
    """The tensors of a safetensors file; each fills its place in the file exactly. Those wanted, or all, are weights.

    Raises:
        UserError: the header is none, or claims what the file does not hold.
    """
    with regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_TEXT, size - 8):
            raise damaged(path, f"its header claims {length:,} bytes, the file has {size:,}")
        text = file.read(length)
    shapes, filled = {}, 0
    try:
        content = json.loads(text)
        content.pop("__metadata__", None)
        for name, entry in sorted(content.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            shape, dtype = _shape(entry["shape"]), str(entry["dtype"])
            if dtype not in (DTYPES if wanted is None or name in wanted else SIZES):
                raise UserError(f"{path}: {name} has the dtype {dtype}: give {', '.join(DTYPES)}")
            if begin != filled or end - begin != math.prod(shape) * SIZES[dtype]:
                raise ValueError(f"{name}'s place and shape do not agree")
            shapes[name], filled = shape, end
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(path, f"its header is wrong ({error})") from None
    if filled != size - 8 - length:
        raise damaged(path, f"its header claims {filled:,} bytes of tensors, the file has {size - 8 - length:,}")
    return shapes


def npz_shapes(path: Path, wanted: Container[str]) -> Shapes:
    """The arrays of an uncompressed npz file. Those wanted are weights.

    Raises:
        UserError: an array is no plain numbers, or not all there.
    """
    shapes = {}
    with regular(path) as file, _archive(path, file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as array:
                try:
                    shape, order, dtype = _npy_header(array)
                    n_bytes = member.file_size - array.tell()
                except Exception as error:  # noqa: BLE001 (numpy reads it as Python, and fails as Python does)
                    raise damaged(path, f"{name} has no valid header ({error})") from None
            if name in wanted and dtype not in (np.float32, np.float16, np.float64):
                raise UserError(f"{path}: {name} has the dtype {dtype}: save it as float32")
            if name in wanted and (order or n_bytes != math.prod(_shape(shape)) * dtype.itemsize):
                raise damaged(path, f"{name} claims the shape {shape}, but has {n_bytes:,} bytes")
            shapes[name] = shape
    return shapes


def _npy_header(array: Any) -> tuple[tuple[int, ...], bool, Any]:
    version = np.lib.format.read_magic(array)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(array)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(array)
    raise ValueError(f"version {version}")


def check_pickle(path: Path) -> None:
    """See that a file of torch.save holds tensors in plain containers, all of them there, and no code.

    Raises:
        UserError: it does not.
    """
    with regular(path) as file, _archive(path, file) as archive:
        pickles = [member for member in archive.infolist() if member.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_TEXT:
            raise damaged(path, "it holds no pickle of torch.save")
        try:
            names = list(_names(archive.read(pickles[0])))
        except (ValueError, zipfile.BadZipFile, IndexError) as error:
            raise damaged(path, f"its pickle is wrong ({error})") from None
    for name in names:
        if not PICKLED.fullmatch(name):
            raise UserError(f"{path} is refused: its pickle names {name}, which is no tensor; nothing in it was run")


def _names(pickled: bytes) -> Iterator[str]:
    """Every global that a pickle names, as "module name"; one that it puts together only when it runs, as what does."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name == "STACK_GLOBAL" or opcode.name.startswith("EXT"):
            yield opcode.name


@contextmanager
def _archive(path: Path, file: BufferedReader) -> Iterator[zipfile.ZipFile]:
    """Open a zip whose members are stored as they are and together take no more than the file has."""
    try:
        with zipfile.ZipFile(file) as archive:
            members, size = archive.infolist(), os.fstat(file.fileno()).st_size
            claimed = sum(member.file_size for member in members)
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                unknown = "is compressed, so its size is not known before it is unpacked"
                raise UserError(f"{path} {unknown}: save it uncompressed")
            if claimed > size or any(member.file_size != member.compress_size for member in members):
                raise damaged(path, f"it claims {claimed:,} bytes, the file has {size:,}")
            if len({member.filename for member in members}) < len(members):
                raise damaged(path, "two of its members share a name")
            yield archive
    except UserError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, ValueError) as error:
        raise damaged(path, str(error)) from None


def _shape(shape: Any) -> tuple[int, ...]:
    if not all(type(size) is int and 0 <= size < 1 << 40 for size in shape):
        raise ValueError(f"{shape} is no shape")
    return tuple(shape)
