"""Check and measure everything on a real GPU, with one command, in a stated time, without network.

    python benchmarks/gpu_check.py                # the parts a to e, at most 8 minutes
    python benchmarks/gpu_check.py --toy          # the same on the CPU with toy sizes, to rehearse it

Parts: (a) the device against the CPU, (b) one training step, (c) capture, (e) evaluation, (d) the main job, in this
order. Every part is a process of its own and is ended in time; what it has found until then is kept. Nothing is
downloaded: the language model is a Gemma 2 9B with random weights, the text is the standard library's docstrings.
"""

import contextlib
import gc
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import RESULTS, application, machine, write_result
from gpu.report import Report, as_markdown, card, read, write
from gpu.scale import Scale

PARTS = {"a": "devices", "b": "steps", "c": "capture", "e": "evaluating", "d": "job"}
"""Letter -> module, in the order they are run: the main job takes all the time that is left."""

SHARES = {"a": 0.20, "b": 0.32, "c": 0.10, "e": 0.12, "d": 0.26}
"""Of the time; what a part does not use is left to those after it."""

STOP_S = 5.0
"""Seconds that a part is given to end by itself."""

app = application(__doc__)


@app.default
def main(
    *,
    toy: bool = False,
    parts: tuple[str, ...] = tuple(PARTS),
    out: Path = RESULTS,
    minutes: float = 8,
    scratch: Path | None = None,
) -> None:
    """Run the parts and write gpu_check.json and gpu_check.md.

    Parameters
    ----------
    toy
        Toy sizes on the CPU.
    parts
        Letters of the parts to run.
    out
        Folder of the results.
    minutes
        Time for everything.
    scratch
        Folder for the model and the runs: some 30 GB. Default: in memory where there is room, else a temporary one.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gpu_check.json"
    until = time.monotonic() + 60 * minutes
    path.unlink(missing_ok=True)
    write(path, {"card": card(device_of(toy)), "torch": torch.__version__, "machine": machine(), "parts": {}})
    chosen = {part: SHARES[part] for part in PARTS if part in parts}
    with scratch_folder(scratch) as folder:
        for i, part in enumerate(chosen):
            left, later = until - time.monotonic(), sum(list(chosen.values())[i:])
            seconds = left * chosen[part] / later if part != "d" else left
            run_part(part, toy, path, seconds - STOP_S, folder)
            sys.stdout.flush()
    report(out, path, toy)


def run_part(part: str, toy: bool, path: Path, seconds: float, scratch: Path) -> None:
    """Run a part in a process of its own, which is ended when its time is over."""
    print(f"--- part {part}: at most {seconds:.0f} s", flush=True)
    command = [sys.executable, Path(__file__), "part", part, "--path", path, "--seconds", seconds, "--scratch", scratch]
    environment = os.environ | {
        "SAE_BENCH_CACHE": str(scratch / "cache"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "KINETO_LOG_LEVEL": "99",
    }  # fmt: skip
    process = subprocess.Popen([str(word) for word in [*command, *(["--toy"] if toy else [])]], env=environment)
    start = time.monotonic()
    try:
        code: int | None = process.wait(timeout=max(1.0, seconds + STOP_S))
    except subprocess.TimeoutExpired:
        code = None
        process.kill()
        process.wait()
    whole = read(path)
    found = whole["parts"].setdefault(part, {"tables": {}, "errors": {}, "facts": {}})
    found["facts"]["seconds"] = time.monotonic() - start
    if code != 0:
        found["errors"]["the part's process"] = "ended: its time was over" if code is None else f"ended with {code}"
        print(f"part {part} {found['errors']['the part' + chr(39) + 's process']}", flush=True)
    write(path, whole)


@app.command(name="part")
def one_part(part: str, *, path: Path, seconds: float, scratch: Path, toy: bool = False) -> None:
    """Run one part in this process; for `main`."""
    device = device_of(toy)
    torch.set_num_threads(1 if toy else min(8, os.cpu_count() or 1))
    scale = Scale.toy(device, scratch) if toy else Scale(device, scratch)
    found = Report(path, part, time.monotonic() + seconds)
    module = importlib.import_module(f"gpu.{PARTS[part]}")
    gc.freeze()  # memory is given back after every check, and what is imported is not looked through for it
    module.run(found, scale)
    found.write()


def device_of(toy: bool) -> torch.device:
    """The CPU for toys, else the GPU."""
    if not toy and not torch.cuda.is_available():
        sys.exit("no GPU here: rehearse with --toy")
    return torch.device("cpu" if toy else "cuda")


@contextlib.contextmanager
def scratch_folder(given: Path | None, room: int = 60 << 30) -> Iterator[Path]:
    """The folder for what is large and made anew; one that was not given is removed."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and shutil.disk_usage(memory).free > room else None
    with tempfile.TemporaryDirectory(prefix="gpu_check-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def report(out: Path, path: Path, toy: bool) -> None:
    """Write everything as Markdown."""
    content = read(path)
    title = f"On a GPU: {content['card']}" if not toy else "Rehearsal of the GPU's check on a CPU"
    failed = [f"{part}: {name}" for part, found in content["parts"].items() for name in found["errors"]] + [
        f"{part}: {title}: {row.get('what', '')}"
        for part, found in content["parts"].items()
        for title, rows in found["tables"].items()
        for row in rows
        if row.get("ok") is False
    ]
    about = f"Checks that failed: {'; '.join(dict.fromkeys(failed)) or 'none'}."
    write_result(out, title, [about, *as_markdown(content)], {"torch": torch.__version__}, torch.get_num_threads())


if __name__ == "__main__":
    sys.exit(app())
