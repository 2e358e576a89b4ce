"""The whole of `autointerp` with a real judge on this machine, on SAEs of Gemma 3 270M.

    python tests/real_judge.py FOLDER         # environment, model and run are kept there; the same command goes on
    python tests/real_judge.py FOLDER qwen    # a judge that can explain; or qwen-small, three times as fast

`judge_server` says who the judges are; they are started and stopped here. smollm2 is far too small to explain anything;
what is shown is that every question is asked, answered or counted, and what that takes. qwen has to tell the latents of
an SAE from those of random directions, which `--chance` has judged beside them.
"""

import subprocess
import sys
import time
from pathlib import Path

from judge_server import prepare, served

ROOT = Path(__file__).parent.parent
RUNS = {
    "smollm2": [
        "--arch", "topk", "jumprelu", "--model", "demo", "--layer", "9", "--width", "1024", "--l0", "32",
        "--tokens", "8192", "--reuse", "8", "--batch-size", "512", "--eval-tokens", "1016",
        "--tasks", "reconstruction", "autointerp", "--latents", "20", "--interp-tokens", "4k",
    ],
    "qwen": [
        "--arch", "topk", "--model", "demo", "--dataset", "natural", "--layer", "9", "--width", "2560", "--l0", "32",
        "--tokens", "262144", "--reuse", "1", "--batch-size", "512", "--eval-tokens", "1016",
        "--tasks", "reconstruction", "autointerp", "--latents", "15", "--interp-tokens", "32k", "--chance",
    ],
}  # fmt: skip
RUNS["qwen-small"] = RUNS["qwen"]
"""What each judge is given to judge."""

SMALL = ["--judge-excerpts", "1", "--explainer-excerpts", "8", "--autointerp-scorers", "detection", "detection_auc"]
JUDGED = {"smollm2": (["--judge-excerpts", "1"], 1), "qwen": (SMALL, 2), "qwen-small": (SMALL, 2)}
"""How, and in how many threads."""


def main(folder: Path, judge: str = "smollm2", *more: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "bench.py"), *RUNS[judge], "--out", str(folder / judge / "run")]
    without = subprocess.run(command, cwd=folder, check=False).returncode  # trained and collected before anybody judges
    if without:
        return without
    prepare(folder, judge)
    how, threads = JUDGED[judge]
    with served(folder, judge, threads=threads) as (address, model):
        began = time.monotonic()
        flags = ["--judge-model", model, "--judge-base-url", address, "--judge-concurrency", "1",
                 "--judge-timeout", "600", *how, *more]  # fmt: skip
        code = subprocess.run([*command, *flags], cwd=folder, check=False).returncode
        print(f"judged in {time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
