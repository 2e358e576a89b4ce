"""What pip would install, as requirements with the SHA-256 of each archive: `python deploy/hashes.py REPORT.json`.

The report is that of `pip install --dry-run --report`; `make hashes` does both.
"""

import json
import sys
from pathlib import Path
from typing import Any


def requirements(report: dict[str, Any]) -> list[str]:
    """One line for each archive; the project itself is a folder, and has none.

    Raises:
        ValueError: an archive has no SHA-256, so that nothing could be held against it.
    """
    lines = []
    for one in report["install"]:
        name, version = one["metadata"]["name"], one["metadata"]["version"]
        if "dir_info" in one["download_info"]:
            continue
        digest = one["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise ValueError(f"{name} {version}: the index says no SHA-256 of it; use another index")
        lines.append(f"{name}=={version} --hash=sha256:{digest}")
    return sorted(lines, key=str.lower)


if __name__ == "__main__":
    try:
        print("\n".join(requirements(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
    except ValueError as error:
        sys.exit(f"error: {error}")
