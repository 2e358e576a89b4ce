"""Metrics against L0, one curve for each architecture with 95% intervals: quality, and shrinkage."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_bench.errors import one_line
from sae_bench.leaderboard.bootstrap import estimate
from sae_bench.leaderboard.compare import Comparison
from sae_bench.leaderboard.curves import at_l0
from sae_bench.leaderboard.figures.style import LEGEND_COLUMNS, l0_axis, legend_above, line_of, new
from sae_bench.leaderboard.margins import controls_of
from sae_bench.leaderboard.palette import Look
from sae_bench.leaderboard.render import ARROWS

NAMES = {
    "delta_lm_loss": "delta LM loss (nats per token)",
    "fve": "fraction of variance explained",
    "gamma_centred": "relative size of deviations from the mean (gamma_centred)",
    "gamma": "relative reconstruction size (gamma)",
}


def quality(comparison: Comparison, looks: Mapping[str, Look]) -> Figure | None:
    """Delta LM loss and variance explained against L0."""
    return _against_l0(comparison, looks, ("delta_lm_loss", "fve"))


def shrinkage(comparison: Comparison, looks: Mapping[str, Look]) -> Figure | None:
    """How large deviations are reconstructed: below 1 they shrink. Older records have `gamma` alone."""
    name = "gamma_centred" if comparison.points("gamma_centred") else "gamma"
    figure = _against_l0(comparison, looks, (name,))
    if figure is not None:
        (axes,) = figure.axes
        axes.axhline(1, color="#555555", linewidth=0.8, linestyle=":")
    return figure


def _against_l0(comparison: Comparison, looks: Mapping[str, Look], metrics: Sequence[str]) -> Figure | None:
    shown = [name for name in metrics if comparison.points(name)]
    if not shown:
        return None
    n_lines = len(comparison.architectures)
    figure, grid = new(len(shown), height=3.0 + 0.17 * ((n_lines - 1) // LEGEND_COLUMNS))
    handles: dict[str, Any] = {}
    for axes, metric in zip(grid[0], shown, strict=True):
        handles |= _draw(axes, comparison, looks, metric)
    legend_above(figure, {label: handles[label] for label in looks if label in handles})
    return figure  # type: ignore[no-any-return]


def _draw(axes: Axes, comparison: Comparison, looks: Mapping[str, Look], metric: str) -> dict[str, Any]:
    handles, seen = {}, []
    heights: dict[str, list[float]] = {}
    for label, points in comparison.points(metric).items():
        order = np.argsort(points.l0[0])
        x = points.l0[0][order]
        found = [estimate(points.value[:, i], comparison.design) for i in order]
        halves = [e.interval()[1] - e.value for e in found]
        style = line_of(looks[label])
        fine = np.geomspace(x[0], x[-1], 60).tolist()
        axes.plot(fine, at_l0(points.l0[:1], points.value[:1], fine)[0], **style | {"marker": ""})
        known = [half if np.isfinite(half) else 0.0 for half in halves]
        axes.errorbar(
            x, [e.value for e in found], yerr=known, capsize=2.5, elinewidth=1, **style | {"linestyle": "none"}
        )
        (handles[label],) = axes.plot([], [], **style)
        heights[label] = [e.value + side * half for e, half in zip(found, known, strict=True) for side in (-1, 1)]
        seen += x.tolist()
    l0_axis(axes, seen)
    _keep_controls_off_the_scale(axes, heights, controls_of(comparison))
    axes.set_ylabel(NAMES[metric] + ARROWS[comparison.directions.get(metric)])
    return handles


def _keep_controls_off_the_scale(axes: Axes, heights: Mapping[str, list[float]], controls: Sequence[str]) -> None:
    """Leave room for architectures, and for controls as far again; a control beyond that is named, not drawn."""
    own = [height for label, of in heights.items() if label not in controls for height in of]
    if len(own) == 0 or len(own) == sum(map(len, heights.values())):
        return
    low, high = min(own), max(own)
    room = (high - low) or abs(high) or 1.0
    near = [height for of in heights.values() for height in of if low - room <= height <= high + room]
    axes.set_ylim(min(near) - 0.05 * room, max(near) + 0.05 * room)
    beyond = [label for label in controls if label in heights and not {*heights[label]} & {*near}]
    if beyond:
        text = f"off the scale: {one_line(', '.join(beyond))}"
        axes.set_title(text, loc="left", fontsize=7, color="#555555")
