"""Faults injected into runs of a tiny model, and what became of the runs: `python tests/faults.py` writes the table.

Every scenario breaks some runs and issues the same command again until it ends. A result is lost if a record of the
run that nothing disturbed is missing in the end, and wrong if one says something else, times apart.
"""

import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from command import flags, write_corpus  # noqa: E402
from tiny import save_tiny  # noqa: E402
from warm import Command, start_server  # noqa: E402

VOLATILE = ("seal", "time", "evaluation_seconds", "seconds")


@dataclass
class Outcome:
    """What a scenario did."""

    fault: str
    injected: int
    survived: int
    lost: int = 0
    wrong: int = 0


class Lab:
    """A tiny model, a corpus, a command, and the run that nothing disturbed."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.draw, self.n_runs = folder, random.Random(seed), 0
        self.settings = {
            "--arch": ("topk", "jumprelu"), "--l0": 6, "--model": save_tiny(folder / "model"), "--layer": 1,
            "--dataset": write_corpus(folder / "corpus.jsonl"), "--width": 48, "--tokens": 3000, "--reuse": 4,
            "--batch-size": 100, "--buffer-tokens": 800, "--eval-tokens": 400, "--context-size": 32,
            "--checkpoint-every": 10,
        }  # fmt: skip
        with in_process(self, "whole") as go:  # in another process than all others are forked from
            assert go() == 0
        self.whole = records(folder / "whole")
        start_server()
        started = time.monotonic()
        assert self.finish("alone")
        self.seconds = time.monotonic() - started
        assert records(folder / "alone") == self.whole

    def command(self, name: str) -> list[str]:
        # Which kernels are faster is measured: by a clock that jumps others are, and other bits come out.
        kernels = {"--kernels": "sparse", "--screening": "on"}
        return [str(part) for part in flags(self.settings | kernels | {"--out": self.folder / name})] + ["--quiet"]

    def run(self, name: str, *more: str, file_bytes: int | None = None) -> Command:
        """Start a process of its own."""
        return Command([*self.command(name), *more], file_bytes)

    def new(self) -> str:
        self.n_runs += 1
        return f"run{self.n_runs}"

    def finish(self, name: str) -> bool:
        """Issue the same command again; whether it ended well."""
        return self.run(name).end()[0] == 0

    def judge(self, fault: str, injected: int, names: list[str], survived: int | None = None) -> Outcome:
        found = [records(self.folder / name) for name in names]
        lost = sum(len(self.whole.keys() - run.keys()) for run in found)
        wrong = sum(run[name] != self.whole[name] for run in found for name in run.keys() & self.whole.keys())
        return Outcome(fault, injected, len(names) if survived is None else survived, lost, wrong)


def records(run: Path) -> dict[str, object]:
    """What the records say, times apart, and the bytes of everything else that a run is for."""
    said: dict[str, object] = {
        path.name: _still(json.loads(path.read_text())) for path in sorted((run / "records").glob("*.json"))
    }
    made = [*run.glob("saes/*/*.safetensors"), *run.glob("saes/*/cfg.json"), *run.glob("saes/*/metrics.jsonl"),
            *run.glob("leaderboard.*")]  # fmt: skip
    return said | {str(path.relative_to(run)): path.read_bytes() for path in made}


def _still(value: object) -> object:
    if isinstance(value, dict):
        return {key: _still(of) for key, of in value.items() if key not in VOLATILE}
    return value


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


@contextmanager
def in_process(lab: Lab, name: str):
    """The command in this process, so that its parts can be replaced; yields a function that runs it."""
    from sae_bench.cli.main import main

    def go() -> object:
        try:
            main(lab.command(name))
        except SystemExit as exit_:
            return exit_.code

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield go


def broken_corpus(lab: Lab, n: int) -> Outcome:
    """Reading the corpus fails after a random number of documents, as a lost connection does."""
    from sae_bench.lm import tokens as data

    names, survived = [], 0
    whole = data.documents
    for _ in range(n):
        names.append(name := lab.new())
        left = [lab.draw.randrange(1, 300)]

        def breaking(*arguments: object, left: list[int] = left, **how: object):
            for text in whole(*arguments, **how):
                left[0] -= 1
                if left[0] == 0:
                    raise ConnectionError("the dataset's server is gone")
                yield text

        with in_process(lab, name) as go:
            with mock.patch.object(data, "documents", breaking):
                stopped = go() == 2 and left[0] == 0
            survived += stopped and lab.finish(name)
    return lab.judge("the corpus breaks off while it is read", n, names, survived)


def nan_in_the_model(lab: Lab, n: int) -> Outcome:
    """One forward pass gives NaN: in capture it stops the run, and the next one goes on."""
    from sae_bench.lm.model import LanguageModel

    names, survived = [], 0
    capture = LanguageModel.capture
    for _ in range(n):
        names.append(name := lab.new())
        left = [lab.draw.randrange(1, 3)]  # in training, or in the evaluation

        def bad(self: LanguageModel, *arguments: object, left: list[int] = left, **how: object):
            activations = capture(self, *arguments, **how)
            left[0] -= 1
            if left[0] == 0:
                next(iter(activations.values()))[0, 3, 1] = float("nan")
            return activations

        with in_process(lab, name) as go, mock.patch.object(LanguageModel, "capture", bad):
            stopped = go() == 2
        survived += stopped and lab.finish(name)
    return lab.judge("the model gives NaN on one batch", n, names, survived)


def clock(lab: Lab, n: int) -> Outcome:
    """Every clock jumps by days, both ways, at every look: also those that are said never to."""
    names, survived = [], 0
    for _ in range(n):
        names.append(name := lab.new())
        with in_process(lab, name) as go, ExitStack() as clocks:
            for which in ("time", "monotonic", "perf_counter"):
                clocks.enter_context(mock.patch(f"time.{which}", side_effect=lambda: lab.draw.uniform(0, 4e9)))
            survived += go() == 0
    return lab.judge("clock jumps", n, names, survived)


def soak(lab: Lab, tokens: int) -> Outcome:
    """A long run: resident memory at the end is that of its first quarter."""
    name = lab.new()
    command = [*lab.command(name)]
    command[command.index("--tokens") + 1] = str(tokens)
    process = Command(command)
    sizes = []
    while process.exitcode is None:
        try:
            status = Path(f"/proc/{process.pid}/statm").read_text().split()
            sizes.append(int(status[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        except (OSError, IndexError):
            break
        time.sleep(0.5)
    code, _ = process.end()
    early, late = max(sizes[len(sizes) // 8 : len(sizes) // 4]), max(sizes[-len(sizes) // 4 :])
    flat = code == 0 and late < 1.05 * early + 10
    print(f"soak: {tokens:,} tokens, {len(sizes) / 2:.0f} s, {early:.0f} MiB early, {late:.0f} MiB late", flush=True)
    return Outcome(f"soak: {tokens:,} tokens, memory stays flat", 1, int(flat))


def attacks():
    """Those of a file of its own, which reads this one."""
    return importlib.import_module("attacks")


LONG: dict[str, Callable[[Lab], Outcome]] = {
    "kill": lambda lab: killed(lab, signal.SIGKILL, 30),
    "term": lambda lab: killed(lab, signal.SIGTERM, 10),
    "disk": lambda lab: full_disk(lab, 6),
    "bits": lambda lab: flipped_bits(lab, 2),
    "two": lambda lab: two_processes(lab, 3),
    "corpus": lambda lab: broken_corpus(lab, 4),
    "nan": lambda lab: nan_in_the_model(lab, 2),
    "clock": lambda lab: clock(lab, 2),
    "own": lambda lab: attacks().users_files(lab, 3),
    "caches": lambda lab: attacks().damaged_caches(lab, 3),
    "soak": lambda lab: soak(lab, 400_000),
}


def main(names: list[str]) -> None:
    """Inject everything, or some kinds of fault, and write the table into docs/reliability.md."""
    from tabulate import tabulate

    kept = ROOT / "docs" / "reliability.json"
    found = json.loads(kept.read_text()) if names and kept.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAE_BENCH_CACHE"] = f"{folder}/cache"
        lab = Lab(Path(folder))
        for name in names or LONG:
            found[name] = asdict(LONG[name](lab))
            print(name, found[name], flush=True)
            kept.write_text(json.dumps(found, indent=1) + "\n")
    outcomes = [Outcome(**found[name]) for name in LONG if name in found]
    rows = [[o.fault, o.injected, o.survived, o.lost, o.wrong] for o in outcomes]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 5))])
    headers = ["fault", "injected", "survived", "results lost", "wrong results"]
    page = ROOT / "docs" / "reliability.md"
    begin, end = "<!-- made by tests/faults.py -->", "<!-- end -->"
    text = page.read_text(encoding="utf-8")
    table = tabulate(rows, headers, tablefmt="github")
    page.write_text(f"{text[: text.index(begin)]}{begin}\n{table}\n{text[text.index(end) :]}", encoding="utf-8")
    sys.exit(any(o.lost or o.wrong or o.survived < o.injected for o in outcomes))


if __name__ == "__main__":
    main(sys.argv[1:])
