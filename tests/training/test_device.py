"""What is asked of CUDA, on a machine without it: by what is called, and by what is answered where it is missing."""

import os
from pathlib import Path

import pytest
import torch

from sae_bench import device
from sae_bench.device import SPARE_SHARE, SideStream, has_room, send, trim_memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GIB = 1 << 30


@pytest.fixture
def calls(monkeypatch):
    """CUDA as far as this module uses it, and a list of the calls."""
    calls: list[object] = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    class Context:
        def __init__(self, stream):
            self.name = stream.name

        def __enter__(self):
            calls.append(f"enter {self.name}")

        def __exit__(self, *error):
            calls.append(f"leave {self.name}")

    main = Stream("main")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(f"side on {device}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", Context)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: calls.append(f"recorded for {stream.name}"))
    return calls


def test_a_side_stream_is_cudas(calls):
    side = SideStream(CUDA)
    with side.work():
        calls.append("work")
    side.wait()
    side.join()
    side.uses(torch.ones(3))
    name = "side on cuda:0"
    assert calls == [
        f"enter {name}", "work", f"leave {name}", f"{name} waits for main", f"main waits for {name}",
        f"recorded for {name}",
    ]  # fmt: skip


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_without_cuda_a_side_stream_does_its_work_in_turn(device):
    side = SideStream(device)
    with side.work():
        x = torch.ones(3)
    side.wait()
    side.join()
    side.uses(x)
    assert x.sum() == 3


def test_a_side_stream_on_the_cpu_is_none_even_where_there_is_cuda(calls):
    with SideStream(CPU).work():
        pass
    assert not calls


def test_a_copy_to_cuda_leaves_from_pinned_memory_and_is_not_waited_for(calls, monkeypatch):
    x, pinned, sent = (torch.arange(n) for n in (3, 4, 5))

    def to(x, *args, **options):
        calls.append((x, args, options))
        return sent

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned)
    monkeypatch.setattr(torch.Tensor, "to", to)
    assert send(x, CUDA) is sent
    assert calls == [(pinned, (CUDA,), {"non_blocking": True})]


def test_a_tensor_sent_to_the_cpu_is_there():
    x = torch.arange(3)
    assert send(x, CPU) is x


def test_room_is_what_is_free_less_a_share_of_the_device(calls):
    left = 60 * GIB - round(SPARE_SHARE * 80 * GIB)
    assert has_room(CUDA, left - 1)
    assert not has_room(CUDA, left + 1)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_there_is_no_room_without_cuda(device):
    assert not has_room(device, 0)


def test_what_was_freed_goes_back_to_the_system(monkeypatch):
    """One piece of ten is still held, so that the C library by itself gives nothing back."""
    monkeypatch.setitem(device._trimmed, "to", 0)
    trim_memory(CPU)  # whatever earlier tests left
    pieces = [torch.ones(16_000) for _ in range(3000)]
    held = pieces[::10]
    del pieces
    before = resident()
    trim_memory(CPU)
    assert before - resident() > 0.5 * 0.9 * 3000 * 64_000
    assert all(piece.sum() == 16_000 for piece in held)


def test_a_process_that_has_hardly_grown_is_left_alone(monkeypatch):
    """Giving back takes time for every byte that is held, whatever there is to give."""
    monkeypatch.setitem(device._trimmed, "to", 0)
    trim_memory(CPU)
    held = [torch.ones(16_000) for _ in range(500)][::10]
    before = resident()
    trim_memory(CPU)
    assert before - resident() < 4_000_000
    assert len(held) == 50


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
