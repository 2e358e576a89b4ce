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
    low: bool
    """Whether the encoder product is in bfloat16."""


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
    # bfloat16: W is read, rounded and read again; z is written rounded, read, and written with b_enc added.
    in_low = matrix + 2 * LOW * D * F + 2 * LOW * B * F + BYTES * B * F
    in_full = matrix + BYTES * (B * D + B * F)
    low = shape.low and ceilings.bfloat16 > 0
    rate = ceilings.bfloat16 if low else ceilings.float32
    work: dict[str, tuple[float, float, float]] = {  # bytes, operations, rate
        "encoder product": (in_low if low else in_full, product, rate),
        "selection": (BYTES * B * F, 0, 1),
        "decode": (times * (gathered + BYTES * B * D), times * 2 * P * D, ceilings.float32),
        # Inner products gather both factors; the gradient of the weights gathers activations and is written whole.
        "decode, backward": (
            times * 2 * gathered + gathered + matrix, times * 2 * P * D + 2 * P * D, ceilings.float32,
        ),
        "selection, backward": (gathered + matrix, 2 * P * D, ceilings.float32),
        "clip gradient": (2 * matrix + 4 * matrix, 0, 1),  # read for the norm; read and written
        "optimiser": (7 * 2 * matrix, 0, 1),  # weights, gradients, two moments read; all but gradients written
        "project gradient": (3 * matrix, 0, 1),
        "renormalise": (3 * matrix, 0, 1),  # read for the norm; read and written
    }  # fmt: skip
    return {part: _floor(*work[part], ceilings.bandwidth) for part in found if part in work}


def _floor(n_bytes: float, operations: float, rate: float, bandwidth: float) -> Floor:
    moving, computing = 1000 * n_bytes / bandwidth, 1000 * operations / rate
    return Floor(max(moving, computing), "bytes" if moving >= computing else "arithmetic")
