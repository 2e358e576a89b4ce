"""The whole of `autointerp` with a real judge on this machine: 20 latents each of two SAEs on Gemma 3 270M.

    python tests/real_judge.py FOLDER         # environment, model and run are kept there; the same command goes on

The judge is SmolLM2-135M-Instruct behind `transformers serve` (`judge_server`), started and stopped here. It is far too
small to explain anything; what is shown is that every question is asked, answered or counted, and what that takes.
"""

import subprocess
import sys
import time
from pathlib import Path

from judge_server import prepare, served

ROOT = Path(__file__).parent.parent
RUN = [
    "--arch", "topk", "jumprelu", "--model", "demo", "--layer", "9", "--width", "1024", "--l0", "32",
    "--tokens", "8192", "--reuse", "8", "--batch-size", "512", "--eval-tokens", "1016",
    "--tasks", "reconstruction", "autointerp", "--latents", "20", "--interp-tokens", "4k",
]  # fmt: skip


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "bench.py"), *RUN, "--out", str(folder / "run")]
    without = subprocess.run(command, cwd=folder, check=False).returncode  # trained and collected before anybody judges
    if without:
        return without
    prepare(folder)
    with served(folder) as (address, model):
        began = time.monotonic()
        judge = ["--judge-model", model, "--judge-base-url", address, "--judge-concurrency", "1",
                 "--judge-timeout", "600", "--judge-excerpts", "1", *sys.argv[2:]]  # fmt: skip
        code = subprocess.run([*command, *judge], cwd=folder, check=False).returncode
        print(f"judged in {time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
