"""Files changed in a thousand ways, and read as a command reads them: an answer or one clear line, and nothing else.

Every kind of file is read in a process of its own, which may die of it. `python tests/fuzz.py KIND... [--tries N]` says
what came of each; `tests/faults.py` makes rows of it.
"""

import contextlib
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzzed import folders, models, texts  # noqa: E402
from fuzzed.target import Wrong  # noqa: E402
from lab import Outcome  # noqa: E402
from mutations import mutate  # noqa: E402
from warm import CONTEXT, start_server  # noqa: E402

ROWS = {
    "fuzz-models": (models.LMS, "language models, whole, in pieces, quantised"),
    "fuzz-saes": (models.SAES, "SAEs of every format"),
    "fuzz-settings": (texts.SETTINGS, "suites, recipes, worlds, prices"),
    "fuzz-texts": (texts.TEXTS, "corpora and labelled texts of every format"),
    "fuzz-folders": (folders.FOLDERS, "runs, studies, tunings, caches, checkpoints, answers of judges"),
}
"""Kinds of files, in the rows in which they are told of."""
TARGETS = {kind: target for kinds, _ in ROWS.values() for kind, target in kinds.items()}

MOST_BYTES = 3 << 30
"""Of address space that reading may take beyond what a process has: a reader that wants more is told of it."""
PATIENCE = 120
"""Seconds after which a file that is still being read counts as one that ends in nothing."""


@dataclass
class Tried:
    """What came of some changed files."""

    kind: str
    n: int = 0
    read: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    """Read as something else than it says."""
    faults: list[str] = field(default_factory=list)
    """A traceback, a death, or no end."""
    peak: int = 0
    """Bytes of memory that were resident at most, beyond those before the first."""


def fuzz(kind: str, tries: int, seed: int = 0, first: int = 0) -> Tried:
    """Read so many changed files of a kind: always the same ones."""
    found, at, end = Tried(kind), first, first + tries
    with tempfile.TemporaryDirectory() as folder:
        while at < end:
            receiver, sender = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=_read_all, args=(kind, seed, at, end, folder, sender))
            process.start()
            sender.close()
            at = _follow(receiver, found, at) + 1
            if process.is_alive() and at < end:
                process.kill()  # what it reads has no end
            process.join()
    return found


def row(name: str, most: int = 1000) -> Outcome:
    """What came of the files of each kind in a row, so many at most; every fault is printed."""
    kinds, what = ROWS[name]
    tries = [min(most, target.tries) for target in kinds.values()]
    found = [fuzz(kind, n) for kind, n in zip(kinds, tries, strict=True)]
    for one in found:
        print(f"{one.kind}: {one.n} files, {one.read} read, {one.refused} refused, {one.peak >> 20} MiB", flush=True)
        for line in [*one.wrong, *one.faults]:
            print(line, flush=True)
    n, faults, wrong = (sum(map(of, found)) for of in (lambda f: f.n, lambda f: len(f.faults), lambda f: len(f.wrong)))
    several = " to ".join(f"{n:,}" for n in sorted({min(tries), max(tries)}))
    return Outcome(f"a changed file: {what} ({several} of each kind)", n, n - faults - wrong, 0, wrong)


def _follow(receiver: Connection, found: Tried, at: int) -> int:
    """Hear of one file after the other; the number of the last that is done with, or was fatal."""
    how = "before the first"
    while True:
        try:
            if not receiver.poll(PATIENCE):
                found.faults.append(f"{found.kind} {at} ({how}): no end in {PATIENCE} s")
                return at
            what, *said = receiver.recv()
        except EOFError:
            found.faults.append(f"{found.kind} {at} ({how}): the process died")
            return at
        if what == "broken":
            raise RuntimeError(f"{found.kind}: a whole one cannot be made or read: {said[0]}")
        if what == "end":
            found.peak = max(found.peak, *said)
            return sys.maxsize - 1
        if what == "at":
            at, how = said
            found.n += 1
        elif what in ("read", "refused"):
            setattr(found, what, getattr(found, what) + 1)
        else:
            getattr(found, what).append(f"{found.kind} {at} ({how}): {said[0]}")


def _read_all(kind: str, seed: int, first: int, end: int, folder: str, sender: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(silence, descriptor)
    where = Path(folder) / str(first)
    os.environ["SAE_BENCH_CACHE"] = str(where / "cache")
    (where / "work").mkdir(parents=True)
    os.chdir(where / "work")
    target, whole, copy = TARGETS[kind], where / "whole", where / "copy"
    try:
        with quiet():
            files = target.make(whole)
            shutil.copytree(whole, copy)
            target.read(copy)  # and this is right
    except BaseException:  # noqa: BLE001 (whatever it is, the parent says so)
        sender.send(("broken", traceback.format_exc()))
        return
    pages = resource.getpagesize()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * pages
    size = int(Path("/proc/self/statm").read_text().split()[0]) * pages
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, resource.RLIM_INFINITY))
    for number in range(first, end):
        draw = random.Random(f"{kind} {seed} {number}")
        shutil.rmtree(copy)
        shutil.copytree(whole, copy)
        path = draw.choice(sorted(files))
        sender.send(("at", number, mutate(copy / path.relative_to(whole), draw)))
        sender.send(outcome(kind, copy))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sender.send(("end", max(0, peak - before)))


def outcome(kind: str, folder: Path) -> tuple[str, ...]:
    """What reading comes to."""
    from sae_bench.errors import UserError

    try:
        with quiet():
            TARGETS[kind].read(folder)
    except UserError as error:
        line = str(error)
        if len(line.splitlines()) != 1:
            return "faults", f"no line: {line!r}"
        return ("refused",)
    except Wrong as error:
        return "wrong", str(error)
    except BaseException as error:  # noqa: BLE001 (whatever it is, it would be a traceback)
        last = traceback.extract_tb(error.__traceback__)[-3:]
        places = " < ".join(f"{Path(of.filename).name}:{of.lineno} {of.name}" for of in reversed(last))
        return "faults", f"{type(error).__name__}: {' '.join(str(error).split())[:150]} at {places}"
    return ("read",)


@contextlib.contextmanager
def quiet():
    """What a command prints is not looked at."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def main(arguments: list[str]) -> None:
    """Say what came of each kind, and every fault."""
    tries, seed = 1000, 0
    kinds = []
    words = iter(arguments)
    for word in words:
        if word == "--tries":
            tries = int(next(words))
        elif word == "--seed":
            seed = int(next(words))
        else:
            kinds.append(word)
    start_server()
    bad = False
    for kind in kinds or TARGETS:
        started = time.monotonic()
        found = fuzz(kind, tries, seed)
        bad = bad or bool(found.faults or found.wrong)
        came = f"{found.read} read, {found.refused} refused, {len(found.wrong)} wrong, {len(found.faults)} faults"
        took = f"{found.peak >> 20} MiB, {time.monotonic() - started:.0f} s"
        print(f"{kind}: {found.n} files, {came}, {took}", flush=True)
        places = Counter(fault.rpartition(": ")[2].rpartition(" at ")[2] for fault in found.faults)
        for line in [*found.wrong[:20], *sorted(found.faults, key=lambda f: f.rpartition(" at ")[2])[:60]]:
            print(f"  {line}", flush=True)
        for place, n in places.most_common(20):
            print(f"  {n:4d} {place}", flush=True)
    sys.exit(bad)


if __name__ == "__main__":
    main(sys.argv[1:])
