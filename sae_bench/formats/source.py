"""An SAE's files, wherever they lie: a name for messages and records, and each file's path."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sae_bench.formats.headers import regular


@dataclass(frozen=True)
class Source:
    """The files of one SAE.

    `name` is what was asked for, which may say the site; `files` are the paths by their names in the SAE's folder.
    """

    name: str
    files: Mapping[str, Path]
    hub_commit: str | None = None

    def sha256(self) -> str:
        """SHA-256 (hex) over the names and bytes of the files."""
        digest = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            with regular(path) as file:
                digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()
