"""Are frequent latents less interpretable? Scores of single latents against how often they fire."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sae_bench.errors import one_line
from sae_bench.leaderboard.board import SAE
from sae_bench.leaderboard.figures.style import legend_above, line_of, new, plain_ticks
from sae_bench.leaderboard.palette import Look

N_GROUPS = 5
"""Latents of an architecture are put into this many groups of one size, by frequency."""


def interpretability(saes: Sequence[SAE], looks: Mapping[str, Look]) -> Figure | None:
    """One axes for each scorer: each latent a faint point, and the mean of groups with 95% intervals over latents."""
    scores = [(sae.label, *found) for sae in saes for of_latent in sae.latents(_scores) for found in of_latent]
    scorers = sorted({scorer for _, scorer, _, _ in scores})
    if not scorers:
        return None
    figure, grid = new(len(scorers), width=3.6)
    handles: dict[str, Any] = {}
    for axes, scorer in zip(grid[0], scorers, strict=True):
        for label in looks:
            mine = np.array(sorted((f, value) for of, by, f, value in scores if (of, by) == (label, scorer)))
            if not len(mine):
                continue
            style = line_of(looks[label])
            axes.scatter(*mine.T, s=5, color=style["color"], alpha=0.25, linewidths=0)
            groups = [group for group in np.array_split(mine, N_GROUPS) if len(group) > 1]
            x = [np.exp(np.log(group[:, 0]).mean()) for group in groups]
            y = [group[:, 1].mean() for group in groups]
            half = [1.96 * group[:, 1].std(ddof=1) / len(group) ** 0.5 for group in groups]
            handles[label] = axes.errorbar(x, y, yerr=half, capsize=2.5, elinewidth=1, **style)
        axes.set_xscale("log")
        plain_ticks(axes.xaxis, percent=True)
        axes.set_xlabel("share of tokens on which the latent fires")
        axes.set_ylabel(f"{one_line(scorer)} score ↑")
    legend_above(figure, handles)
    return figure  # type: ignore[no-any-return]


def _scores(latent: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Scorer, share of the tokens on which it fires, and value, where both are there."""
    share = float(latent["n_fired"]) / float(latent["n_tokens"])
    found = [(str(scorer), share, score["value"]) for scorer, score in latent["scores"].items()]
    return [(scorer, share, float(value)) for scorer, share, value in found if value is not None and share]
