"""What a check has found, written after every row: a check that fails, or that is killed, costs no other its result.

Every part runs in a process of its own, one after the other; they share one JSON file.
"""

import json
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import table

Row = Mapping[str, Any]
Found = Row | Iterable[Row] | None


@dataclass
class Report:
    """The rows of one part, by table. `until` is when the part has to end, on the monotonic clock."""

    path: Path
    part: str
    until: float
    tables: dict[str, list[Row]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        return self.until - time.monotonic()

    def run(
        self, title: str, name: str, check: Callable[[], Row | Iterable[Row] | None], *, seconds: float = 0
    ) -> None:
        """Run a check and add what it returns, one row or several, to a table.

        An exception is a row, too; so is a check that is left out because less time is left than it takes (`seconds`).
        """
        if self.seconds_left < seconds:
            self.add(title, {"what": name, "note": f"left out: {max(0, self.seconds_left):.0f} s were left"})
            return
        start = time.monotonic()
        try:
            found = check()
        except Exception as error:  # noqa: BLE001 (whatever it is, the other checks go on)
            trace = traceback.format_exc()
            print(trace, flush=True)
            self.errors[f"{title}: {name}"] = trace
            found = {"ok": False, "note": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            error.__traceback__ = None  # whose frames hold memory of the device
        release()
        for row in [] if found is None else [found] if isinstance(found, Mapping) else found:
            self.add(title, {"what": name} | dict(row) | {"check s": time.monotonic() - start})

    def add(self, title: str, row: Row) -> None:
        """Add a row to a table, print it, and write everything."""
        self.tables.setdefault(title, []).append(row)
        print(f"[{self.part}] {title}: " + "  ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
        self.write()

    def write(self) -> None:
        """Write the file anew, with the parts that others have written."""
        whole = read(self.path)
        whole.setdefault("parts", {})[self.part] = {"tables": self.tables, "errors": self.errors, "facts": self.facts}
        write(self.path, whole)


def read(path: Path) -> dict[str, Any]:
    """What is written so far."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, default=str))
    partial.replace(path)


def as_markdown(content: Mapping[str, Any]) -> list[str]:
    """Every table of every part, and the last line of every error."""
    pieces = []
    for part, found in content.get("parts", {}).items():
        pieces.append(f"## {found['facts'].get('about', part)}")
        for title, rows in found["tables"].items():
            columns = list(dict.fromkeys(column for row in rows for column in row if column != "check s"))
            cells = [[shown(row.get(column, "")) for column in columns] for row in rows]
            pieces += [f"{title[:1].upper()}{title[1:]}.", table(cells, columns)]
        pieces += [f"    {name}: {trace.strip().splitlines()[-1][:160]}" for name, trace in found["errors"].items()]
    return pieces


def shown(value: Any) -> str:
    """A value as tables have it: numbers with four digits."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(str(value).split()).replace("|", "/")


# --- device and time -------------------------------------------------------------------------------------------------


def card(device: torch.device) -> str:
    """The device's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (rehearsal)"


def wait(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release() -> None:
    """Give back what the last check held."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_gb(device: torch.device) -> float:
    """The most memory that tensors had since `torch.cuda.reset_peak_memory_stats`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


class Clock:
    """A moment in the device's queue of work."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()
        self._host = time.perf_counter()

    def ms_until(self, later: "Clock") -> float:
        """Milliseconds between two moments that have passed."""
        if self._event is not None and later._event is not None:
            return self._event.elapsed_time(later._event)
        return 1000 * (later._host - self._host)


def milliseconds(
    step: Callable[[], object], device: torch.device, *, rounds: int = 10, discard: int = 3
) -> list[float]:
    """Times of a step on the device, one after the other without waiting in between; the first ones warm up."""
    for _ in range(discard):
        step()
    wait(device)
    clocks = [Clock(device)]
    for _ in range(rounds):
        step()
        clocks.append(Clock(device))
    wait(device)
    return [before.ms_until(after) for before, after in pairwise(clocks)]


def median_ms(step: Callable[[], object], device: torch.device, *, rounds: int = 10, discard: int = 3) -> float:
    """The median of `milliseconds`."""
    return statistics.median(milliseconds(step, device, rounds=rounds, discard=discard))


def spread(times: Sequence[float]) -> str:
    """Quartiles."""
    if len(times) < 2:
        return ""
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return f"{low:.3g}-{high:.3g}"


class UtilisationSampler:
    """Utilisation (percent) and used memory (GB) of the first GPU, sampled by nvidia-smi until it is closed."""

    QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,power.draw", "--format=csv,noheader,nounits")

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float, float]] = []
        """Moment on the monotonic clock, utilisation, memory, power (W)."""

    def sample(self) -> None:
        """Take one sample; none where there is no GPU."""
        try:
            line = subprocess.run(self.QUERY, capture_output=True, text=True, timeout=10, check=True).stdout
            numbers = [float(part) for part in line.splitlines()[0].split(",")]
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return
        self.samples.append((time.monotonic(), numbers[0], numbers[1] * 2**20 / 1e9, numbers[2]))

    def between(self, start: float, end: float) -> dict[str, float]:
        """Means of utilisation and power and the highest memory between two moments; empty without a sample."""
        some = [sample for sample in self.samples if start <= sample[0] <= end]
        if not some:
            return {}
        return {
            "utilisation %": statistics.fmean(sample[1] for sample in some),
            "used GB": max(sample[2] for sample in some),
            "power W": statistics.fmean(sample[3] for sample in some),
        }
