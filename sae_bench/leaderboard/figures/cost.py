"""What quality costs: delta LM loss against seconds, and against floating-point operations, per million tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sae_bench.leaderboard.board import SAE
from sae_bench.leaderboard.figures.style import legend_above, line_of, new
from sae_bench.leaderboard.palette import Look


def flops_per_token(d_in: int, d_sae: int, l0: float) -> float:
    """Floating-point operations that a training step cannot do without, per token.

    The encoder's product, 2 d_in d_sae, and for each active latent four products with a vector of d_in: decoding, and
    the gradients of the activation, the decoder's row and the encoder's column. Losses, optimiser and what a
    particular architecture adds are left out, so it is a bound and no measurement.
    """
    return 2.0 * d_in * d_sae + 8.0 * d_in * l0


def seconds_per_million(sae: SAE) -> float | None:
    """Seconds of training steps per million tokens, the language model's work apart; None if nobody took the time."""
    training = sae.about.training
    if not training.seconds or not training.tokens_seen:
        return None
    return training.seconds / training.tokens_seen * 1e6


def flops_per_million(sae: SAE) -> float | None:
    """Operations per million tokens at the mean L0 of the training log, or at the measured L0 where there is no log."""
    logged = [row["l0"] for row in sae.training_log() if row.get("l0") is not None]
    l0 = float(np.mean(logged)) if logged else sae.value("l0")
    return None if l0 is None else 1e6 * flops_per_token(sae.about.d_in, sae.about.d_sae, l0)


AXES = (
    ("training seconds per million tokens", seconds_per_million, 1.0),
    ("training TFLOP per million tokens (least)", flops_per_million, 1e-12),
)


def cost(saes: Sequence[SAE], looks: Mapping[str, Look]) -> Figure | None:
    """One point for each SAE; those of an architecture and seed are joined, from the smallest target up."""
    measured = [sae for sae in saes if sae.value("delta_lm_loss") is not None and seconds_per_million(sae) is not None]
    if not measured:
        return None
    figure, grid = new(len(AXES))
    handles: dict[str, Any] = {}
    for axes, (title, of, unit) in zip(grid[0], AXES, strict=True):
        for label, seed in dict.fromkeys((sae.label, sae.seed) for sae in measured):
            line = [sae for sae in measured if (sae.label, sae.seed) == (label, seed)]
            points = [(x * unit, sae.value("delta_lm_loss")) for sae in line if (x := of(sae)) is not None]
            (handles[label],) = axes.plot(*zip(*points, strict=True), **line_of(looks[label]))
        axes.set_xlabel(title)
        axes.set_ylabel("delta LM loss (nats per token) ↓")
        axes.set_xlim(0, 1.05 * axes.dataLim.x1)
    legend_above(figure, handles)
    return figure  # type: ignore[no-any-return]
