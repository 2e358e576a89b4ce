"""(d) The main job on a random Gemma 2 9B: SAE-tokens a second, utilisation, memory against what the dry run stated."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu.model import Text, make_text, random_model
from gpu.report import Report, UtilisationSampler, release
from gpu.scale import Scale
from sae_bench.records.run_folder import RunFolder
from sae_bench.registry import known_architectures

ABOUT = "(d) The main job"
HERE = Path(__file__).parents[1]
GRACE_S = 20.0
"""Seconds between asking the job to stop and stopping it."""
TASKS = ("delta_lm_loss", "reconstruction", "feature_density")


def run(report: Report, scale: Scale) -> None:
    """Every row."""
    text = make_text(scale)
    home = scale.scratch / "job"
    shutil.rmtree(home, ignore_errors=True)
    report.facts["about"] = ABOUT
    report.run("model", "written", partial(write_model, report, scale, text, home / "model"))
    command = [
        "--arch", "all", "--model", home / "model", "--layer", scale.layer, "--dataset", text.corpus,
        "--width", scale.widths[0], "--l0", scale.l0, "--tokens", scale.n_trained, "--reuse", scale.reuse,
        "--batch-size", scale.batch, "--buffer-tokens", min(262_144, scale.n_trained), "--context-size", scale.context,
        "--eval-tokens", scale.n_evaluated // 2, "--tasks", *TASKS, "--device", scale.device, "--out", home / "run",
    ]  # fmt: skip
    arguments = [str(part) for part in command]
    report.facts["command"] = " ".join(["python bench.py", *arguments])
    stated: dict[str, float] = {}
    report.run("dry run", "stated", partial(dry_run, arguments, stated))
    report.run("main job", "all architectures", partial(main_job, report, scale, arguments, home, stated))
    report.run("what came out", "all architectures", partial(record_rows, home / "run"))


def write_model(report: Report, scale: Scale, text: Text, folder: Path) -> dict[str, Any]:
    """A folder with the model; with fewer layers if there is no time to write, read and hash all of it."""
    n_bytes = 2 * 9.24e9 if scale.model["hidden_size"] > 1000 else 1e6
    layers = None
    if 3 * n_bytes / written_per_second(folder.parent) + n_bytes / 1e9 > report.seconds_left - 90:
        layers = scale.shallow
    start = time.perf_counter()
    model = random_model(scale, layers=layers)
    made = time.perf_counter() - start
    model.save_pretrained(folder)
    text.tokenizer.save_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    row = {
        "layers": model.config.num_hidden_layers, "GB": size / 1e9, "made in s": made,
        "written in s": time.perf_counter() - start - made,
    }  # fmt: skip
    del model
    release()
    return row


def written_per_second(folder: Path, n_bytes: int = 1 << 28) -> float:
    """Bytes that the disk takes a second."""
    folder.mkdir(parents=True, exist_ok=True)
    content = torch.randint(256, (n_bytes,), dtype=torch.uint8).numpy()
    start = time.perf_counter()
    content.tofile(folder / "probe")
    seconds = time.perf_counter() - start
    (folder / "probe").unlink()
    return n_bytes / seconds


def dry_run(arguments: list[str], stated: dict[str, float]) -> dict[str, Any]:
    """What the plan says of memory."""
    done = subprocess.run(
        [sys.executable, HERE.parent / "bench.py", *arguments, "--dry-run"], capture_output=True, text=True, timeout=120
    )
    found = re.search(r"memory +about ([\d.]+) GB", done.stdout)
    if found is None:
        raise RuntimeError(f"the dry run ended with {done.returncode}: {done.stderr[-1000:]}")
    stated["GB"] = float(found[1])
    return {"memory GB": stated["GB"], "plan": " ; ".join(done.stdout.split("\n\n")[-1].splitlines())}


def main_job(
    report: Report, scale: Scale, arguments: list[str], home: Path, stated: dict[str, float]
) -> list[dict[str, Any]]:
    """The job in a process of its own, watched from here."""
    result, sampler = home / "watched.json", UtilisationSampler()
    log = home / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu.watched", result, *arguments], cwd=HERE, stdout=output, stderr=output
        )
        stopped = False
        try:
            while process.poll() is None:
                sampler.sample()
                time.sleep(0.2)
                if report.seconds_left < GRACE_S and not stopped:
                    process.send_signal(signal.SIGTERM)  # it ends the step, and saves a checkpoint
                    stopped = True
                if report.seconds_left < 3:
                    break
        finally:
            process.kill()
            process.wait()
    said = log.read_text()
    report.facts["log"] = said[-4000:]
    found = json.loads(result.read_text()) if result.exists() else {"spans": {}}
    rows = stage_rows(found["spans"], sampler)
    finished = process.returncode == 0
    row: dict[str, Any] = {
        "part": "whole",
        "ok": finished,
        "note": "" if finished else f"ended with {process.returncode}",
    }
    if "train" in found["spans"]:
        start, end = found["spans"]["train"]
        n_tokens = steps_done(scale, said, finished) * scale.batch
        rate = n_tokens * len(known_architectures(False)) / (end - start)
        row |= {"SAEs": len(known_architectures(False)), "tokens": n_tokens, "SAE-tokens/s": rate}
    used = max((sample[2] for sample in sampler.samples), default=0.0)
    row |= {
        "allocated GB": found.get("allocated GB", 0.0), "reserved GB": found.get("reserved GB", 0.0),
        "used GB": used, "host GB": found.get("host peak GB", 0.0), "stated GB": stated.get("GB", 0.0),
    }  # fmt: skip
    return [row, *rows]


def steps_done(scale: Scale, said: str, finished: bool) -> int:
    """Steps of the training, all of them if it has ended; else as far as its last line of progress says."""
    if finished:
        return scale.n_trained * scale.reuse // scale.batch
    seen = re.findall(r"^train: ([\d,]+)", said, flags=re.M)
    return int(seen[-1].replace(",", "")) if seen else 0


def stage_rows(spans: dict[str, tuple[float, float]], sampler: UtilisationSampler) -> list[dict[str, Any]]:
    """Every stage's seconds, and what the device did meanwhile."""
    return [
        {"part": stage, "seconds": end - start} | sampler.between(start, end) for stage, (start, end) in spans.items()
    ]


def record_rows(folder: Path) -> list[dict[str, Any]]:
    """What came out: every SAE's L0 and FVE, or why there is none."""
    if not folder.is_dir():
        return []
    rows = []
    for record in RunFolder(folder).records():
        if record.task == "reconstruction":
            values = {name: score.value for name, score in record.scores.items() if name in ("l0", "fve")}
            skipped = getattr(record.sae.training, "steps_skipped", "")
            rows.append({"part": record.sae.label, **values, "skipped": skipped, "note": record.failure or ""})
    return rows
