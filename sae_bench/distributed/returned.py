"""What comes back from Ray's tasks: a value, or why there is none, in one line, and how often."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import ray

from sae_bench.distributed.desk import Report
from sae_bench.distributed.view import TRAIN
from sae_bench.errors import UserError
from sae_bench.records.redact import redact

Task = Any
"""A reference to what a Ray task returns."""


@dataclass
class Faults:
    """Of one cell, since it last got further."""

    n: int = 0
    left: float = inf
    """Steps that were left when the last attempt began."""

    def note(self, report: Report | None) -> None:
        """Another fault; `report` is the cell's last."""
        left = report.total if report and report.stage == TRAIN else self.left
        self.n, self.left = 1 if left < self.left else self.n + 1, left


@contextmanager
def not_lost() -> Iterator[None]:
    """Within this block what Ray itself cannot do is an error of one line; what a task raises passes as it is."""
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise UserError(f"the cluster fails ({reason}): see that it runs, and the same command goes on") from None


def value_of(task: Task) -> Any:
    """What a task returns; a user's mistake is one here, too."""
    try:
        with not_lost():
            return ray.get(task)
    except UserError as error:
        raise UserError(str(getattr(error, "cause", error))) from None


def error_of(task: Task) -> Exception | None:
    """What a task that has ended raised, if anything."""
    try:
        ray.get(task)
    except ray.exceptions.RayError as error:
        found: Exception = error
        return found
    return None


def reason_of(error: Exception) -> str:
    """Why a cell failed, in one line."""
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip().splitlines() or [""]
    return redact(text[0] if isinstance(cause, UserError) else f"{type(cause).__name__}: {text[0]}")
