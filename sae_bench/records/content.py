"""What a file holds, as a hash that is not made again where the system itself says that nothing has been written.

A file's size and modification time are anybody's to set: another corpus that was copied with its times looks the same.
The time of its last change of any kind (`st_ctime`) is the system's own on POSIX: a copy, a move or an edit sets it to
now. So a hash is trusted for one inode with one such time, and kept only if that time was well past when the file was
read: within the clock's grain a later write could have the same one. Elsewhere files are hashed whenever they are read.
"""

import hashlib
import os
import time
from pathlib import Path

from sae_bench.errors import UserError
from sae_bench.records.files import sha256
from sae_bench.records.kept import keep, read_kept
from sae_bench.records.names import cache_folder

SETTLED_S = 10.0
"""Seconds since the last change: more than the grain of any file system's clock, and of a server's beside ours."""


def content_hash(path: Path) -> str:
    """The file's SHA-256 (hex), from the cache folder where the file cannot have changed since it was made.

    Raises:
        UserError: it cannot be read, or is written while it is read.
    """
    try:
        about = _state(path)
        kept = cache_folder() / "hashes" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]}.json"
        if os.name == "posix" and (known := read_kept(kept)).get("state") == about and "sha256" in known:
            return str(known["sha256"])
        settled = os.name == "posix" and 0 <= about[3] < (time.time() - SETTLED_S) * 1e9
        digest = sha256(path)
        if _state(path) != about:
            raise UserError(f"{path} is written to while it is read: wait until it is whole, and try again")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check it, or name another") from None
    if settled:
        keep(kept, {"state": about, "sha256": digest})
    return digest


def _state(path: Path) -> list[int]:
    """What the system says of a file: device, inode, size, and the times of its last change and modification."""
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns, found.st_mtime_ns]
