"""Records of a folder, read together: what many of them repeat, as what their SAE is, is read and checked once.

Thousands of records say the same of their run, and all of an SAE's the same of it. Of a file as it was written the
pieces are known without reading it whole, so one that was read before is taken from there; the seal is held against all
of them, as in `read_sealed`. What is anything else is read by `read_record`, which says what is wrong.
"""

import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import from_json

from sae_bench.records.files import as_hashed, digest_of_pieces, pieces_of
from sae_bench.records.schema import Metric, Provenance, Record, SAEDescription, read_record, record_from

REPEATED: dict[bytes, Callable[[Any], Any]] = {
    b"metrics": TypeAdapter(dict[str, Metric]).validate_python,
    b"provenance": Provenance.model_validate,
    b"sae": SAEDescription.model_validate,
}
"""What is read once, by its name in a record. Records are never changed, so that many may have it."""

SHORT = 64
"""Bytes of a piece up to which it is likely to be repeated, whatever it says."""

Known = dict[bytes, tuple[str, bytes, Any]]
"""Name, piece as hashed, and value, by the piece itself."""


def read_records(paths: Iterable[Path]) -> list[Record]:
    """Records of some files.

    Raises:
        Damaged: one is not what was written.
        UserError: one is ill-typed, or of a later version of the harness.
    """
    known: Known = {}
    collects = gc.isenabled()
    gc.disable()  # nothing of what is read is to be collected, and looking for it takes a quarter of the time
    try:
        return [_as_written(path, known) or read_record(path) for path in paths]
    finally:
        if collects:
            gc.enable()


def _as_written(path: Path, known: Known) -> Record | None:
    """The record of a file that is as `write_record` lays it out; None of any other."""
    content, hashed, seals = {}, [], []
    try:
        for piece in pieces_of(path.read_bytes()):
            of_piece = known.get(piece)
            if of_piece is None:
                name, _, text = piece.partition(b'": ')
                value = from_json(text)
                if not name.replace(b"_", b"").isalnum():
                    return None  # a name is no JSON by itself: who reads the whole says whether it is one
                if name == b"seal":
                    seals.append(value)
                    continue
                read = REPEATED.get(name)
                of_piece = name.decode(), as_hashed(piece, value), read(value) if read else value
                if read or len(piece) <= SHORT:
                    known[piece] = of_piece
            content[of_piece[0]] = of_piece[2]
            hashed.append(of_piece[1])
    except (OSError, ValueError):  # pydantic's errors are of the latter
        return None
    return record_from(content, path) if seals == [digest_of_pieces(hashed)] else None
