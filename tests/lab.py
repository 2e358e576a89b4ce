"""What faults are injected into: runs of a tiny model, and the run that nothing disturbed."""

import io
import json
import random
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from command import flags, write_corpus
from tiny import save_tiny
from warm import Command, start_server

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
