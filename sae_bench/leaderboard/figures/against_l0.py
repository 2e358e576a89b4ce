"""Metrics against L0, one curve for each architecture with 95% intervals: quality, and shrinkage."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_bench.leaderboard.bootstrap import estimate
from sae_bench.leaderboard.compare import Comparison
from sae_bench.leaderboard.curves import at_l0
from sae_bench.leaderboard.figures.style import l0_axis, legend_above, line_of, new
from sae_bench.leaderboard.palette import looks
from sae_bench.leaderboard.render import ARROWS

NAMES = {
    "delta_lm_loss": "delta LM loss (nats per token)",
    "fve": "fraction of variance explained",
    "gamma_centred": "relative size of deviations from the mean (gamma_centred)",
    "gamma": "relative reconstruction size (gamma)",
}


def quality(comparison: Comparison, labels: Sequence[str]) -> Figure | None:
    """Delta LM loss and variance explained against L0."""
    return _against_l0(comparison, labels, ("delta_lm_loss", "fve"))


def shrinkage(comparison: Comparison, labels: Sequence[str]) -> Figure | None:
    """How large deviations are reconstructed: below 1 they shrink. Older records have `gamma` alone."""
    name = "gamma_centred" if comparison.points("gamma_centred") else "gamma"
    figure = _against_l0(comparison, labels, (name,))
    if figure is not None:
        (axes,) = figure.axes
        axes.axhline(1, color="#555555", linewidth=0.8, linestyle=":")
    return figure


def _against_l0(comparison: Comparison, labels: Sequence[str], metrics: Sequence[str]) -> Figure | None:
    shown = [name for name in metrics if comparison.points(name)]
    if not shown:
        return None
    figure, grid = new(len(shown))
    handles: dict[str, Any] = {}
    for axes, metric in zip(grid[0], shown, strict=True):
        handles |= _draw(axes, comparison, labels, metric)
    legend_above(figure, handles)
    return figure  # type: ignore[no-any-return]


def _draw(axes: Axes, comparison: Comparison, labels: Sequence[str], metric: str) -> dict[str, Any]:
    handles, seen = {}, []
    for label, points in comparison.points(metric).items():
        order = np.argsort(points.l0[0])
        x = points.l0[0][order]
        found = [estimate(points.value[:, i], comparison.design) for i in order]
        halves = [e.interval()[1] - e.value for e in found]
        style = line_of(looks(labels)[label])
        fine = np.geomspace(x[0], x[-1], 60).tolist()
        axes.plot(fine, at_l0(points.l0[:1], points.value[:1], fine)[0], **style | {"marker": ""})
        known = [half if np.isfinite(half) else 0.0 for half in halves]
        axes.errorbar(
            x, [e.value for e in found], yerr=known, capsize=2.5, elinewidth=1, **style | {"linestyle": "none"}
        )
        (handles[label],) = axes.plot([], [], **style)
        seen += x.tolist()
    l0_axis(axes, seen)
    axes.set_ylabel(NAMES[metric] + ARROWS[comparison.directions.get(metric)])
    return handles
