"""Make the peers' virtual environments: one for each list of requirements in `peers/`.

    python benchmarks/setup_peers.py

`NAME.txt` is installed, then `NAME.no-deps.txt` without its dependencies, then `NAME.remove.txt` is uninstalled. An
environment whose lists have not changed since is left alone. The peers' own packages never enter ours: SAEBench's is
called sae_bench, as ours is.
"""

import os
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import SCRATCH, application, peer_python, scratch

LISTS = Path(__file__).parent / "peers"

app = application(__doc__)


@app.default
def main(*names: str, folder: Path = SCRATCH) -> None:
    """Make what is missing or out of date.

    Parameters
    ----------
    names
        Environments. Default: all.
    folder
        Where the environments go.
    """
    scratch()
    asked = names or sorted(path.stem for path in LISTS.glob("*.txt") if "." not in path.stem)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # pip unpacks on one core
        list(pool.map(lambda name: _make(name, folder), asked))


def _make(name: str, folder: Path) -> None:
    """Make one environment, if it is missing or out of date.

    Raises:
        subprocess.CalledProcessError: pip failed, and said why.
    """
    lists = sorted(LISTS.glob(f"{name}.*txt"))
    wanted = "".join(path.read_text() for path in lists)
    made = folder / name / "made_from.txt"
    if made.exists() and made.read_text() == wanted:
        print(f"{name}: up to date")
        return
    print(f"{name}: installing", flush=True)
    if not (folder / name).exists():
        venv.create(folder / name, with_pip=True)
    pip = [str(peer_python(name, folder)), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Most of what is installed is never imported: compiling it all would take longer than downloading it.
    subprocess.run([*pip, "install", "--no-compile", "--requirement", LISTS / f"{name}.txt"], check=True)
    if (extra := LISTS / f"{name}.no-deps.txt") in lists:
        subprocess.run([*pip, "install", "--no-compile", "--no-deps", "--requirement", extra], check=True)
    if (unwanted := LISTS / f"{name}.remove.txt") in lists:
        subprocess.run([*pip, "uninstall", "--yes", "--requirement", unwanted], check=True)
    made.write_text(wanted)


if __name__ == "__main__":
    sys.exit(app())
