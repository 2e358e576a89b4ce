"""The command line with a watch on its stages: `python -m gpu.watched RESULT.json ARGUMENTS...` runs bench.py's main.

The result has when each stage began and ended, on the monotonic clock that all processes share, and the peak of memory.
"""

import atexit
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sae_bench.cli.main import main
from sae_bench.runs import cell, workbench
from sae_bench.runs import train as train_stage
from sae_bench.runs.train import TrainStage

STAGES: tuple[tuple[Any, str, str], ...] = (
    (workbench, "load_model", "load model"),
    (TrainStage, "__init__", "prepare training"),
    (train_stage, "train", "train"),
    (TrainStage, "run", "train and save"),
    (cell, "evaluate_saes", "evaluate"),
)

result = Path(sys.argv[1])
spans: dict[str, tuple[float, float]] = {}


def watched(function: Callable[..., Any], stage: str) -> Callable[..., Any]:
    """The function; what it takes is noted."""

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.monotonic()
        try:
            return function(*arguments, **options)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spans[stage] = start, time.monotonic()
            note()

    return timed


def note() -> None:
    """Write what is known."""
    found: dict[str, Any] = {"spans": spans, "host peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    if torch.cuda.is_available():
        found["allocated GB"] = torch.cuda.max_memory_allocated() / 1e9
        found["reserved GB"] = torch.cuda.max_memory_reserved() / 1e9
    result.write_text(json.dumps(found))


for owner, name, stage in STAGES:
    setattr(owner, name, watched(getattr(owner, name), stage))
atexit.register(note)
main(sys.argv[2:])
