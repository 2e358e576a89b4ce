"""How often latents fire, one histogram for each architecture, all at the wanted L0 that lies in the middle."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_bench.errors import one_line
from sae_bench.leaderboard.board import SAE
from sae_bench.leaderboard.figures.style import new
from sae_bench.leaderboard.palette import Look

DENSE = 0.1
"""A latent that fires on more tokens than this share is dense."""
BINS_PER_DECADE = 5
MOST_IN_A_COLUMN = 6


def frequency(saes: Sequence[SAE], looks: Mapping[str, Look]) -> Figure | None:
    """Feature-frequency histograms at matched L0, over all seeds, with the dead and the dense shares written in."""
    counted = [sae for sae in saes if sae.counts is not None]
    target = matched_target(counted)
    if target is None:
        return None
    shown = [label for label in looks if any(sae.label == label and sae.target == target for sae in counted)]
    n_columns = 1 if len(shown) <= MOST_IN_A_COLUMN else 2
    figure, grid = new(n_columns, -(-len(shown) // n_columns), width=6.0, height=1.25, sharex=True, sharey=True)
    places = grid.T.flatten()
    for axes in places[len(shown) :]:
        axes.set_visible(False)
    most = max(of[1] for sae in counted if (of := sae.counts))
    edges = np.arange(np.floor(-np.log10(most)), 1e-9 + 1 / BINS_PER_DECADE, 1 / BINS_PER_DECADE)
    for axes, label in zip(places, shown, strict=False):
        mine = [sae for sae in counted if sae.label == label and sae.target == target]
        _draw(axes, mine, label, looks[label].colour, edges)
    for axes in grid[-1]:
        axes.set_xlabel("share of tokens on which a latent fires (log scale)")
        axes.set_xticks(ticks := np.arange(np.ceil(edges[0]), 1), [f"{100 * 10**at:g}%" for at in ticks])
    figure.supylabel("share of latents", fontsize=9)
    return figure  # type: ignore[no-any-return]


def matched_target(saes: Sequence[SAE]) -> float | None:
    """The target in the middle of those that all architectures share, else of all there are; None if there are none."""
    of = [{sae.target for sae in saes if sae.label == label} for label in {sae.label for sae in saes}]
    if not of:
        return None
    targets = sorted(set.intersection(*of) or set.union(*of))
    return targets[len(targets) // 2]


def _draw(axes: Axes, saes: Sequence[SAE], label: str, colour: str, edges: np.ndarray) -> None:
    frequencies = np.concatenate([np.array(of[0]) / of[1] for sae in saes if (of := sae.counts)])
    alive = frequencies[frequencies > 0]
    shares = np.histogram(np.log10(alive), bins=edges)[0] / len(frequencies)
    axes.bar(edges[:-1], shares, width=np.diff(edges), align="edge", color=colour, edgecolor="white", linewidth=0.4)
    axes.axvspan(np.log10(DENSE), 0, facecolor="none", edgecolor="#777777", hatch="////", alpha=0.35, linewidth=0)
    axes.set_xlim(edges[0], 0)
    l0 = [value for sae in saes if (value := sae.value("l0")) is not None]
    measured = f", L0 {np.mean(l0):.3g}" if l0 else ""
    dead, dense = np.mean(frequencies == 0), np.mean(frequencies > DENSE)
    text = f"{one_line(label)}{measured}\n{dead:.1%} dead, {dense:.2%} dense (over {DENSE:.0%}, hatched)"
    axes.annotate(text, (0.01, 0.96), xycoords="axes fraction", va="top", fontsize=8)
