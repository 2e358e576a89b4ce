"""What a person sees of a run on a cluster: its cells, how fast they train, and when they will be done."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from sae_bench.distributed.desk import Report
from sae_bench.progress import LINE_EVERY_S, Progress

TRAIN = "train"
"""The stage whose rate is shown."""

BEFORE = ("load", "capture")
BETWEEN = ("site means",)
EVALUATE = "evaluate"
"""The stages around the training; what is not named here comes after the evaluation, and is in no cell's seconds."""

RATE_OVER_S = 60.0
"""Seconds that a rate is taken over."""


@dataclass(frozen=True)
class CellView:
    """A cell as it is shown: its seconds are the plan's, and weigh it against the others."""

    seconds: float
    n_saes: int
    evaluation_share: float = 0.0
    """Of the seconds, the part that comes after the training."""


class View:
    """One line on a terminal that stays, or lines from time to time anywhere else; nothing with `quiet`."""

    def __init__(self, progress: Progress, cells: Mapping[str, CellView], batch_size: int) -> None:
        self._progress, self._cells, self._batch_size = progress, cells, batch_size
        self._started = self._last = time.monotonic()
        self._done: set[str] = set()
        self._failed: set[str] = set()
        self._first: tuple[float, float] | None = None
        """When a cell had loaded what it needs and began its work, and the planned seconds that were done by then."""
        self._steps: dict[str, int] = {}
        self._samples: list[tuple[float, int]] = []
        self._trained = 0  # SAE-tokens so far
        self._bars: Any = None

    def __enter__(self) -> "View":
        if self._progress.bars:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            self._bars = Bars(*columns, console=Console(stderr=True))
            self._bars.start()
            self._bars.add_task("cells", total=len(self._cells), note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        if kind is None:
            seconds = time.monotonic() - self._started
            failed = f", {len(self._failed)} failed" if self._failed else ""
            self._progress.say(
                f"cells: {len(self._done)} done{failed} in {seconds:.0f} s, {self._trained:,} SAE-tokens"
            )

    def say(self, text: str) -> None:
        """A line of news above the view."""
        if self._bars is not None:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            self._progress.say(text)

    def finished(self, cell: str, *, failed: bool) -> None:
        (self._failed if failed else self._done).add(cell)

    def show(self, reports: Mapping[str, Report], running: Sequence[str]) -> None:
        """Show how things stand; `reports` are of all cells so far."""
        self._count(reports)
        text = self.line(reports, running)
        if self._bars is not None:
            self._bars.update(0, completed=len(self._done) + len(self._failed), note=text)
        elif time.monotonic() - self._last > LINE_EVERY_S:
            self._progress.say(f"cells: {len(self._done)} of {len(self._cells)} done, {text}")
            self._last = time.monotonic()

    def line(self, reports: Mapping[str, Report], running: Sequence[str]) -> str:
        """How things stand, in words."""
        n_waiting = len(self._cells) - len(self._done) - len(self._failed) - len(running)
        parts = [f"{len(running)} running, {n_waiting} waiting, {len(self._failed)} failed"]
        if rate := self.tokens_per_second:
            parts.append(f"{rate:,.0f} SAE-tokens/s")
        eta = self.seconds_left(reports)
        return ", ".join([*parts, *([] if eta is None else [f"eta {_clock(eta)}"])])

    def _count(self, reports: Mapping[str, Report]) -> None:
        """Take what was trained since the last reports into account; a cell that begins again counts anew."""
        for cell, report in reports.items():
            if report.stage == TRAIN and cell in self._cells:
                steps = max(0, report.done - self._steps.get(cell, 0))
                self._trained += steps * self._batch_size * self._cells[cell].n_saes
                self._steps[cell] = report.done
        now = time.monotonic()
        self._samples = [*(sample for sample in self._samples if now - sample[0] < RATE_OVER_S), (now, self._trained)]

    @property
    def tokens_per_second(self) -> float:
        """Over the last minute: tokens trained on, times the SAEs trained on them."""
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def seconds_left(self, reports: Mapping[str, Report]) -> float | None:
        """By what was done in how much time since work began; None where nothing is yet.

        Neither the loading before it counts, nor what earlier commands had done.
        """
        whole = sum(cell.seconds for cell in self._cells.values())
        done = sum(cell.seconds * self._share(name, reports) for name, cell in self._cells.items())
        if self._first is None and any(report.stage not in BEFORE for report in reports.values()):
            self._first = time.monotonic(), done
        began, before = self._first or (0.0, done)
        return (time.monotonic() - began) * (whole - done) / (done - before) if done > before else None

    def _share(self, cell: str, reports: Mapping[str, Report]) -> float:
        if cell in self._done | self._failed:
            return 1.0
        report = reports.get(cell, Report("load"))
        of_stage, evaluation = report.done / max(1, report.total), self._cells[cell].evaluation_share
        if report.stage in BEFORE:
            return 0.0
        if report.stage == TRAIN:
            return (1 - evaluation) * of_stage
        if report.stage in BETWEEN:
            return 1 - evaluation
        return 1 - evaluation * (1 - of_stage) if report.stage == EVALUATE else 1.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
