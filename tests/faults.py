"""Faults injected into runs of a tiny model, and what became of the runs: `python tests/faults.py` writes the table.

Every scenario breaks some runs and issues the same command again until it ends. A result is lost if a record of the
run that nothing disturbed is missing in the end, and wrong if one says something else, times apart.
"""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import attacks  # noqa: E402
import broken_parts  # noqa: E402
import fuzz  # noqa: E402
import loads  # noqa: E402
from lab import Lab, Outcome  # noqa: E402


def killed(lab: Lab, number: int, moments: int) -> Outcome:
    """A signal at random moments of runs, two to each run, from start-up to the last record."""
    names: list[str] = []
    hit = 0
    while hit < moments:
        if hit % 2 == 0:
            names.append(lab.new())
        process = lab.run(names[-1])
        process.join(lab.draw.uniform(0.1, 0.9) * lab.seconds)
        if process.exitcode is not None:
            names.append(lab.new())  # it was faster than the signal: that was no fault
        else:
            process.kill() if number == signal.SIGKILL else process.terminate()
            hit += 1
        code, _ = process.end()
        assert code in (0, -9, -15, 130), code
    ended = [lab.finish(name) for name in names]
    return lab.judge(f"{signal.Signals(number).name} at a random moment", hit, names, hit if all(ended) else 0)


def full_disk(lab: Lab, n: int) -> Outcome:
    """Files that cannot grow beyond a few kilobytes, from a random file on: what a quota does."""
    names, injected, survived = [], 0, 0
    for _ in range(n):
        names.append(name := lab.new())
        limit = lab.draw.choice((500, 2_000, 8_000, 20_000))
        code, errors = lab.run(name, file_bytes=limit).end()
        injected += 1
        told = code == 2 and re.search(r"error: cannot write .*: .*; free space or choose", errors)
        survived += bool(told) and lab.finish(name)
    return lab.judge("files that cannot be written (quota), then can", injected, names, survived)


def flipped_bits(lab: Lab, each: int) -> Outcome:
    """A random bit of every kind of file, after the run and, for checkpoints, in its middle."""
    names, injected, survived = [], 0, 0
    kinds = ("run.json", "saes/*/sae_weights.safetensors", "saes/*/sae_bench.json", "saes/*/cfg.json",
             "saes/*/metrics.jsonl", "records/*.json", "checkpoints/*/*.safetensors", "checkpoints/*/checkpoint.json",
             "leaderboard.*")  # fmt: skip
    for kind in kinds:
        for _ in range(each):
            names.append(name := lab.new())
            if kind.startswith("checkpoints"):
                _interrupt(lab, name)
            else:
                shutil.copytree(lab.folder / "whole", lab.folder / name)
            path = lab.draw.choice(sorted((lab.folder / name).glob(kind)))
            content = bytearray(path.read_bytes())
            content[lab.draw.randrange(len(content))] ^= 1 << lab.draw.randrange(8)
            path.write_bytes(content)
            injected += 1
            survived += lab.finish(name)
    return lab.judge("one flipped bit in a file, every kind of file", injected, names, survived)


def _interrupt(lab: Lab, name: str) -> None:
    """Leave a run with two checkpoints."""
    process = lab.run(name)
    while process.exitcode is None and len(list((lab.folder / name).glob("checkpoints/*/checkpoint.json"))) < 2:
        time.sleep(0.01)
    process.kill()
    process.end()


def two_processes(lab: Lab, n: int) -> Outcome:
    """Two processes at once in the same folder: the later stops and names the other, which goes on."""
    names, survived = [], 0
    for _ in range(n):
        names.append(name := lab.new())
        both = [lab.run(name), lab.run(name)]
        codes, errors = zip(*(process.end() for process in both), strict=True)
        named = [
            f"is in use by process {other.pid} on " in error for other, error in zip(both[::-1], errors, strict=True)
        ]
        survived += sorted(codes) == [0, 2] and any(named)
    return lab.judge("a second process in the same folder", n, names, survived)


LONG: dict[str, Callable[[Lab], Outcome]] = {
    "kill": lambda lab: killed(lab, signal.SIGKILL, 30),
    "term": lambda lab: killed(lab, signal.SIGTERM, 10),
    "disk": lambda lab: full_disk(lab, 6),
    "bits": lambda lab: flipped_bits(lab, 2),
    "two": lambda lab: two_processes(lab, 3),
    "corpus": lambda lab: broken_parts.broken_corpus(lab, 4),
    "nan": lambda lab: broken_parts.nan_in_the_model(lab, 2),
    "clock": lambda lab: broken_parts.clock(lab, 2),
    "own": lambda lab: attacks.users_files(lab, 3),
    "caches": lambda lab: attacks.damaged_caches(lab, 3),
    "loads": lambda lab: loads.loads(lab),
    "soak": lambda lab: loads.soak(lab, 400_000),
    **{name: lambda lab, name=name: fuzz.row(name) for name in fuzz.ROWS},
}


def main(names: list[str]) -> None:
    """Inject everything, or some kinds of fault, and write the table into docs/reliability.md."""
    kept = ROOT / "docs" / "reliability.json"
    found = json.loads(kept.read_text()) if names and kept.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAE_BENCH_CACHE"] = f"{folder}/cache"
        lab = Lab(Path(folder))
        for name in names or LONG:
            found[name] = asdict(LONG[name](lab))
            print(name, found[name], flush=True)
            kept.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any(o.lost or o.wrong or o.survived < o.injected for o in write_table(found)))


def write_table(found: dict[str, dict[str, Any]]) -> list[Outcome]:
    """Put what was found, by name, into docs/reliability.md."""
    from tabulate import tabulate

    outcomes = [Outcome(**found[name]) for name in LONG if name in found]
    rows = [[o.fault, o.injected, o.survived, o.lost, o.wrong] for o in outcomes]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 5))])
    headers = ["fault", "injected", "survived", "results lost", "wrong results"]
    page = ROOT / "docs" / "reliability.md"
    begin, end = "<!-- made by tests/faults.py -->", "<!-- end -->"
    text = page.read_text(encoding="utf-8")
    table = tabulate(rows, headers, tablefmt="github")
    page.write_text(f"{text[: text.index(begin)]}{begin}\n{table}\n{text[text.index(end) :]}", encoding="utf-8")
    return outcomes


if __name__ == "__main__":
    main(sys.argv[1:])
