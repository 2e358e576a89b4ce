"""Training curves: variance explained, L0 and dead latents over the training, from the training logs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sae_bench.leaderboard.board import SAE
from sae_bench.leaderboard.figures.frequency import matched_target
from sae_bench.leaderboard.figures.style import legend_above, line_of, new, plain_ticks
from sae_bench.leaderboard.palette import Look

SHOWN = {
    "fve": "variance explained (training batch)",
    "l0": "L0 (training batch)",
    "dead_share": "share of dead latents",
}


def training(saes: Sequence[SAE], looks: Mapping[str, Look]) -> Figure | None:
    """One line for each architecture at the target in the middle: the mean over seeds, and each seed faintly."""
    logs = {sae.id: log for sae in saes if (log := sae.training_log())}
    logged = [sae for sae in saes if sae.id in logs]
    target = matched_target(logged)
    if target is None:
        return None
    figure, grid = new(len(SHOWN), width=3.2)
    handles: dict[str, Any] = {}
    for label in looks:
        of = [logs[sae.id] for sae in logged if sae.label == label and sae.target == target]
        style = line_of(looks[label])
        for axes, name in zip(grid[0], SHOWN, strict=True):
            lines = [_line(log, name) for log in of]
            for tokens, values in lines:
                axes.plot(tokens, values, color=style["color"], linewidth=0.6, alpha=0.35)
            if lines:
                shortest = min(len(values) for _, values in lines)
                mean = np.mean([values[:shortest] for _, values in lines], axis=0)
                every = max(1, shortest // 6)
                (handles[label],) = axes.plot(lines[0][0][:shortest], mean, markevery=every, **style)
    for axes, (name, title) in zip(grid[0], SHOWN.items(), strict=True):
        axes.set_xlabel("training tokens (millions)")
        axes.set_ylabel(title)
        if name == "l0":
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
            axes.axhline(target, color="#555555", linewidth=0.8, linestyle=":")
    legend_above(figure, handles)
    return figure  # type: ignore[no-any-return]


def _line(log: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Tokens in millions and values; a value that was not finite leaves a gap."""
    rows = [row for row in log if name in row]
    return [row["tokens"] / 1e6 for row in rows], [np.nan if row[name] is None else row[name] for row in rows]
