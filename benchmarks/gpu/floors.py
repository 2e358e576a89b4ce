"""The least time that a part of a step can take: bytes over bandwidth or arithmetic over the matrix units' rate.

Every input is read once and every output written once, in the types that they are in now; rows gathered by a sparse
product count as often as they are gathered, for no cache holds them all. What a fused program would not write is
counted where it is written today.
"""

from collections.abc import Mapping
from dataclasses import dataclass

BYTES, LOW = 4, 2
"""Of a float32 and of a bfloat16."""


@dataclass
class Ceilings:
    """What the device was measured to do; the defaults stand for a CPU in rehearsal."""

    bandwidth: float = 1e10
    """Bytes a second, read and written."""
    float32: float = 1e11
    """Operations a second of a matrix product."""
    bfloat16: float = 1e11


@dataclass(frozen=True)
class Shape:
    """B tokens, D wide, F latents, P active pairs."""

    B: int
    D: int
    F: int
    P: int
    arch: str


@dataclass(frozen=True)
class Floor:
    """Milliseconds, and which of the two limits sets them."""

    ms: float
    by: str


def floors(shape: Shape, ceilings: Ceilings, found: Mapping[str, float]) -> dict[str, Floor]:
    """By part, for those that were found."""
    B, D, F, P = shape.B, shape.D, shape.F, shape.P
    matrix, gathered, times = BYTES * D * F, BYTES * P * D, 2 if shape.arch == "gated" else 1
    product = 2 * B * D * F
    work: dict[str, tuple[float, float, float]] = {  # bytes, operations, rate
        "rounding and bound": (matrix + BYTES * B * D + LOW * D * (F + B), 0, 1),
        "screening product": (LOW * (D * F + B * D + B * F), product, ceilings.bfloat16),
        "candidates": (LOW * B * F, 0, 1),
        "exact values": (gathered, 2 * P * D, ceilings.float32),
        "encoder product and selection": (matrix + BYTES * (B * D + B * F), product, ceilings.float32),
        "decode": (times * (gathered + BYTES * B * D), times * 2 * P * D, ceilings.float32),
        # Inner products gather both factors; the gradient of the weights gathers activations and is written whole.
        "decode, backward": (
            times * 2 * gathered + gathered + matrix, times * 2 * P * D + 2 * P * D, ceilings.float32,
        ),
        "selection, backward": (gathered + matrix, 2 * P * D, ceilings.float32),
        "norm of the gradient": (3 * matrix, 0, 1),  # of both; W_dec as well, along whose rows nothing counts
        "optimiser": (7 * 2 * matrix, 0, 1),  # weights, gradients, two moments read; all but gradients written
    }  # fmt: skip
    return {part: _floor(*work[part], ceilings.bandwidth) for part in found if part in work}


def _floor(n_bytes: float, operations: float, rate: float, bandwidth: float) -> Floor:
    moving, computing = 1000 * n_bytes / bandwidth, 1000 * operations / rate
    return Floor(max(moving, computing), "bytes" if moving >= computing else "arithmetic")
