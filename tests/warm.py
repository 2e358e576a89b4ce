"""The command line in a process of its own that need not import anything first, for that takes longer than a toy run.

A server is started once that imports what a run needs and does nothing else; every process is forked from it, and is
as any other: with a number of its own, signals, limits, exit code and memory. They share the order of sets of strings
(PYTHONHASHSEED), so what is to be the same in any process is compared with a run in another than these.
"""

import os
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from resource import RLIMIT_FSIZE, setrlimit

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "datasets", "transformers", "sae_bench.cli.main", "sae_bench.api.run", "sae_bench.runs.pipeline"]
)


def start_server() -> None:
    """Start it, which takes seconds, and wait until it can fork."""
    first = CONTEXT.Process(target=int)
    first.start()
    first.join()


class Command(ForkServerProcess):
    """The command line, started, with one thread; what it prints is lost, and what it says on stderr is kept.

    Args:
        arguments: of the command line.
        file_bytes: how long a file may become, if not endlessly.
    """

    def __init__(self, arguments: Sequence[str], file_bytes: int | None = None) -> None:
        self._said, sender = CONTEXT.Pipe(duplex=False)
        super().__init__(target=_run, args=(arguments, os.getcwd(), dict(os.environ), sender, file_bytes))
        self.start()
        sender.close()

    def end(self) -> tuple[int, str]:
        """Wait for its end: the exit code, that of a signal below 0, and what it said."""
        with os.fdopen(os.dup(self._said.fileno()), errors="replace") as said:
            text = said.read()
        self.join()
        assert self.exitcode is not None
        return self.exitcode, text


def _run(
    arguments: Sequence[str], here: str, environment: dict[str, str], sender: Connection, file_bytes: int | None
) -> None:
    import torch

    from sae_bench.cli.main import main

    os.chdir(here)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(sender.fileno(), 2)
    sender.close()
    if file_bytes is not None:
        setrlimit(RLIMIT_FSIZE, (file_bytes, file_bytes))
    torch.set_num_threads(1)
    main(list(arguments))
