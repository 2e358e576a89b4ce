"""The devices that a sweep is planned for: `64xH100`, `8xH100,4xA100`, `2xcpu`, each kind with its memory and speed."""

import re
from collections.abc import Sequence

import torch

from sae_bench.device import SPARE_SHARE, choose_device, free_bytes, has_cuda
from sae_bench.distributed.work import Devices
from sae_bench.errors import UserError, did_you_mean
from sae_bench.runs.costs import CARDS, Peaks, peaks_of

MEMORY = {"H100 PCIe": 80e9, "H200": 141e9, "H100": 80e9, "A100": 80e9}
"""Bytes that NVIDIA gives for the cards of `CARDS`."""

CPU = "cpu"
"""One core of this machine, with its share of the memory."""

MAX_DEVICES = 100_000


def parse_devices(text: str) -> list[tuple[int, str]]:
    """Read `8xH100,4xA100` as counts and kinds.

    Raises:
        UserError: it is something else, or cards and CPU cores, whose numbers differ, are mixed.
    """
    kinds = {_plain(kind): kind for kind in (*CARDS, CPU)}
    found: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)\s*x\s*)?([A-Za-z][\w -]*)", part)
        if not match or not 0 < (count := int(match[1] or 1)) <= MAX_DEVICES:
            raise UserError(f'--devices "{text}": "{part.strip()}" is not a number and a kind: write 64xH100 or 2xcpu')
        kind = kinds.get(_plain(match[2]))
        if kind is None:
            meant = did_you_mean(match[2], kinds.values()) or f"; known are {', '.join(kinds.values())}"
            raise UserError(f'--devices "{text}": unknown kind "{match[2].strip()}"{meant}')
        found[kind] = found.get(kind, 0) + count
    if CPU in found and len(found) > 1:
        raise UserError(f'--devices "{text}": a CPU and a card give other bits: plan for one or the other')
    return [(count, kind) for kind, count in found.items()]


def _plain(kind: str) -> str:
    return re.sub(r"[ _-]", "", kind).lower()


def device_of(kind: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Where a kind's language model runs, and in which dtype; the device may be another machine's."""
    return choose_device(CPU if kind == CPU else "cuda", dtype, here=False)


def fleet_of(counted: Sequence[tuple[int, str]]) -> list[Devices]:
    """The devices and what a cell may take on each: a card's memory but for what is always spared."""
    return [
        Devices(kind, count, _core_bytes() if kind == CPU else int(MEMORY[kind] * (1 - SPARE_SHARE)))
        for count, kind in counted
    ]


def _core_bytes() -> int:
    """One core's share of the memory that is free here."""
    free = free_bytes(torch.device(CPU))
    return int((1 - SPARE_SHARE) * (8e9 if free is None else free / _cores()))


def _cores() -> int:
    return max(torch.get_num_threads(), 1)


def peaks_for(kind: str, dtype: torch.dtype) -> Peaks:
    """What a device of the kind does in a second; one core is measured here."""
    device, _ = device_of(kind, "auto")
    if kind != CPU:
        return next(peaks for peaks in peaks_of(device, dtype, here=False) if peaks.name == kind)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return peaks_of(device, dtype, here=True)[0]
    finally:
        torch.set_num_threads(threads)


def is_here(kind: str) -> bool:
    """Whether what was measured on this machine holds for the kind."""
    here = torch.device("cuda")
    return kind == CPU or (has_cuda(here) and peaks_of(here, torch.bfloat16, here=True)[0].name == kind)
