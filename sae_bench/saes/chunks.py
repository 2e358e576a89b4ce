"""How many rows of a wide matrix are worked on at once, so that it never exists whole."""

from collections.abc import Iterator

import torch

CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}
"""Size of a [chunk, F] buffer: small enough for a CPU's cache, large enough to fill a GPU."""


def chunk_size(width: int, device: torch.device) -> int:
    """Rows of a chunk, so that a float32 [chunk, width] buffer stays within CHUNK_BYTES of the device."""
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * max(1, width)))


def slices(length: int, size: int) -> Iterator[slice]:
    """Cut range(length) into slices of `size`; the last may be shorter."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
