"""All figures of a board as files: `figures RUN...`."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from matplotlib.figure import Figure

from sae_bench.leaderboard.board import SAE, Board
from sae_bench.leaderboard.compare import Comparison, comparisons
from sae_bench.leaderboard.figures import against_l0, cost, frequency, interpretability, training
from sae_bench.leaderboard.figures.style import rendered, styled
from sae_bench.leaderboard.palette import Look
from sae_bench.leaderboard.setting import Setting
from sae_bench.records.names import file_name

METRICS = ("delta_lm_loss", "fve", "gamma_centred", "gamma")
"""Those that are drawn against L0."""

FROM_COMPARISONS: Mapping[str, Callable[[Comparison, Mapping[str, Look]], Figure | None]] = {
    "quality": against_l0.quality,
    "shrinkage": against_l0.shrinkage,
}
FROM_SAES: Mapping[str, Callable[[Sequence[SAE], Mapping[str, Look]], Figure | None]] = {
    "frequency": frequency.frequency,
    "training": training.training,
    "cost": cost.cost,
    "interpretability": interpretability.interpretability,
}

WITHOUT_CONTROLS = ("training", "cost")
"""Where controls have nothing to show: some take no step."""


def figures(board: Board) -> Iterator[tuple[str, bytes]]:
    """Name and content of every figure's files; what the board does not hold the numbers for is left out.

    A board of several models, sites or widths has each figure once for each, and their names say which.
    """
    with styled():
        for name, setting, figure in _drawn(board):
            if figure is None:
                continue
            if len(board.settings) > 1:
                name = file_name(f"{name}.{setting.model.rpartition('/')[2]}.{setting.site}.w{setting.width}")
            for form, content in rendered(figure).items():
                yield f"{name}.{form}", content


def _drawn(board: Board) -> Iterator[tuple[str, Setting, Figure | None]]:
    for comparison in comparisons(board.records, METRICS, controls=True):
        for name, of_comparison in FROM_COMPARISONS.items():
            yield name, comparison.setting, of_comparison(comparison, board.looks)
    for setting in board.settings:
        saes = [sae for sae in board.saes if sae.setting == setting]
        for name, of_saes in FROM_SAES.items():
            wanted = [sae for sae in saes if name not in WITHOUT_CONTROLS or not sae.about.control]
            yield name, setting, of_saes(wanted, board.looks)
