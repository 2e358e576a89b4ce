"""The device that a run works on, and what CUDA offers beside arithmetic.

That is copies that nobody waits for, a second stream, a count of free memory.

Where there is no CUDA the same calls do the same work in turn. That holds for the CPU, and for a fake CUDA device in a
process without a real one, so that tests walk through the very code that a GPU runs.
"""

import ctypes
import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from sae_bench.errors import UserError

log = logging.getLogger(__name__)

SPARE_SHARE = 0.1
"""Part of a device's memory that `has_room` never gives away."""


TRIM_BYTES = 64 << 20
"""What a process may grow by before it gives freed memory back, which takes tens of milliseconds for each GB."""
_trimmed = {"to": 0}
"""The least that it had since it last did."""

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says how much memory there is, and how much of it a container may have."""


def trim_memory(device: torch.device) -> None:
    """Give what was freed of a CPU's memory back to the system, if the process has grown since it last did.

    glibc keeps it, in pieces between what is still held: after the evaluation of 30 SAEs a process held three times
    what it needed. Where the C library has no `malloc_trim` nothing is done.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return
    resident = _resident_bytes()
    _trimmed["to"] = min(_trimmed["to"], resident)  # it may have shrunk by itself
    if resident < _trimmed["to"] + TRIM_BYTES:
        return
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    _trimmed["to"] = _resident_bytes()


def _resident_bytes() -> int:
    """What this process has in memory, as Linux says."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def choose_device(name: str, dtype: str, *, here: bool = True) -> tuple[torch.device, torch.dtype]:
    """The device and the language model's dtype; "auto" is CUDA in bfloat16 where there is one, else CPU in float32.

    Without `here` a device of another machine will do, for which a run is planned.

    Raises:
        UserError: the device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if here and device.type != "mps":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device "{name}": {_advice(name, error)}') from None
    if device.type == "mps":
        raise UserError(f'--device "{name}": MPS has no float64, in which sums are kept; take --device cpu')
    found = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype)
    return device, found or (torch.bfloat16 if device.type == "cuda" else torch.float32)


def _advice(name: str, error: Exception) -> str:
    """Why a device cannot be had, and what can be done about it."""
    if not name.startswith("cuda"):
        unknown = str(error).startswith("Expected one of")  # with all that there ever was
        return f"{'no such device' if unknown else str(error).splitlines()[0]}; take --device cpu or --device cuda"
    if torch.version.cuda is None:
        return (
            f"PyTorch {torch.__version__} here is built without CUDA: install one that has it "
            "(https://pytorch.org/get-started/locally), plan with --dry-run, or take --device cpu"
        )
    n = torch.cuda.device_count()
    if n == 0:
        return "PyTorch sees no NVIDIA GPU: see what nvidia-smi says of card and driver, or take --device cpu"
    return f"there is cuda:0{f' to cuda:{n - 1}' if n > 1 else ' alone'}; choose one of them"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether `device` is a CPU that has instructions for products in bfloat16, which are then faster than float32."""
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def has_cuda(device: torch.device) -> bool:
    """Whether `device` is a CUDA device, and a real one."""
    return device.type == "cuda" and torch.cuda.is_available()


def send(x: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on the device, without waiting for the copy.

    Only page-locked memory is copied behind the host's back; torch keeps it until the copy is done.
    """
    return x.pin_memory().to(device, non_blocking=True) if has_cuda(device) else x.to(device)


def has_room(device: torch.device, n_bytes: int) -> bool:
    """Whether a CUDA device has so many bytes free and some to spare; False for any other device."""
    if not has_cuda(device):
        return False
    free, total = torch.cuda.mem_get_info(device)
    return n_bytes <= free - SPARE_SHARE * total


def free_bytes(device: torch.device) -> int | None:
    """Memory that a device has left, of the CPU what Linux and the container allow; None where nothing says it."""
    if has_cuda(device):
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not MEMINFO.exists():
        return None
    free = next(int(line.split()[1]) << 10 for line in MEMINFO.read_text().splitlines() if "MemAvailable" in line)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, int(most) - int(used.read_text()) + int(stat["inactive_file"]))  # a cache that gives way
    return max(free, 0)


def halved(n: int, what: str) -> int:
    """Half of n, after the device had no memory for n; called where torch.OutOfMemoryError is handled.

    Raises:
        UserError: n is 1.
    """
    if n == 1:
        raise UserError(f"out of memory, even with one of the {what}: choose a smaller model or --width, or fewer SAEs")
    log.warning("out of memory with %d %s: going on with %d", n, what, n // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return n // 2


class SideStream:
    """A second queue of work on a CUDA device; what is given to it runs beside the main one.

        with side.work():               # neither waits for the other
            y = f(x)
        side.join()                     # what the main stream is given from now on comes after that

    Do not yield within `work`: whoever is yielded to would work on the side as well.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if has_cuda(device) else None

    def work(self) -> AbstractContextManager[object]:
        """Return a context in which work goes to the side."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def wait(self) -> None:
        """Let what the side is given from now on come after what the main stream was given so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def join(self) -> None:
        """Let what the main stream is given from now on come after what the side was given so far."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def uses(self, x: Tensor) -> None:
        """Keep the memory of `x`, which the main stream made, until the side has done with it, even if `x` is gone."""
        if self._stream is not None:
            x.record_stream(self._stream)
