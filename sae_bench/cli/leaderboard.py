"""`table`, `compare`, `power`, `claims`: what runs' records say, printed; `figures`, `report`, `board`: drawn."""

import gc
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Annotated, Literal, ParamSpec, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number

P = ParamSpec("P")
T = TypeVar("T")

Runs = Annotated[list[Path], Parameter(required=True, help="Folders of runs.")]
Form = Annotated[Literal["text", "md", "tex", "csv"], Parameter(name="--format", help="text, md, tex or csv.")]
L0s = Annotated[
    list[float] | None,
    Parameter(
        validator=Number(gt=0, lt=inf),
        help="L0s to compare at, where they were measured. Default: 20 50 100 150; where none of these was, round "
        "numbers between those that were wanted.",
    ),
]

Top = Annotated[
    int | None, Parameter(validator=Number(gte=1), help="Show the best N architectures alone; of controls, the best.")
]


def table(
    runs: Runs,
    /,
    *,
    columns: list[str] | None = None,
    group_by: list[str] | None = None,
    over_seeds: bool = False,
    top: Top = None,
    mix: bool = False,
    form: Form = "text",
) -> int:
    """Print the leaderboard of one or more runs' folders.

    Text is as wide as the terminal, with the columns that matter most; it says which have no room. Without a choice of
    rows and columns, failures are listed too.

    Args:
        columns: Metrics to show, in this order, in several tables if one would be too wide; margin:METRIC is what a
            value is better by than the best control's; all: every headline one. Default: L0 and the headline ones.
        group_by: Group rows by model, site, layer, width, architecture, target or seed.
        over_seeds: One row for each architecture and target: the mean over seeds, with its 95% interval.
        mix: Tabulate runs of different evaluation tokens, versions of a task or models of one name, and say so.
    """
    from sae_bench.leaderboard import board_table, load
    from sae_bench.leaderboard.text_tables import terminal_width

    records, wide = _read(load.gather, runs, mix=mix), terminal_width()
    if columns is None and group_by is None and not over_seeds and top is None and form == "text":
        print(board_table.terminal(records, wide), end="")
    else:
        print(board_table.table(records, form, columns, group_by, over_seeds=over_seeds, top=top, wide=wide), end="")
    return 0


def compare(
    runs: Runs,
    /,
    *,
    metric: list[str] | None = None,
    at_l0: L0s = None,
    controls: bool = False,
    top: Top = None,
    form: Form = "text",
) -> int:
    """Compare architectures at matched L0, with intervals, over the seeds and documents of one or more runs.

    Args:
        metric: Metrics to compare. Default: those of the leaderboard that have a better direction.
        controls: Compare with controls, too, and show the margins over the best of them.
    """
    from sae_bench.leaderboard import captions, compare, compare_table, load, matched
    from sae_bench.leaderboard.text_tables import terminal_width

    records = _read(load.gather, runs)
    metrics = compare.check_metrics(records, metric)
    compared, facts = compare.comparisons(records, metrics, controls=controls), captions.caption(records)
    l0s, wide = at_l0 or matched.default_l0s(records), terminal_width()
    print(compare_table.written(form, compared, metrics, l0s, facts, top, wide))
    return 0


def power(
    runs: Runs,
    /,
    *,
    metric: list[str] | None = None,
    difference: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    at_l0: L0s = None,
    form: Form = "text",
) -> int:
    """Say what a board's metrics can tell: noise floor, smallest difference, and what telling another would take.

    Args:
        metric: Metrics. Default: those of the leaderboard that have a better direction.
        difference: How many seeds and documents it would take to tell a difference of this size, in the metric's unit.
    """
    from sae_bench.leaderboard import compare, load, matched
    from sae_bench.leaderboard import power as of_board

    records = _read(load.gather, runs)
    metrics = compare.check_metrics(records, metric)
    compared = compare.comparisons(records, metrics)
    print(of_board.written(form, compared, metrics, at_l0 or matched.default_l0s(records), difference), end="")
    return 0


def claims(runs: Runs, /, *, each: bool = False, at_l0: L0s = None, form: Form = "text") -> int:
    """Check published claims, those of the JumpReLU paper first: each holds, does not hold, or cannot be told.

    Args:
        each: Judge each run by itself, such as boards of other tokens, and say how many claims any of them answers.
    """
    from sae_bench.leaderboard import captions, claim_sections, load

    if each:
        of_each = {str(run): claim_sections.sections(_read(load.gather, [run]), at_l0) for run in runs}
        print(claim_sections.written_of_each(form, of_each), end="")
        return 0
    records = _read(load.gather, runs)
    print(claim_sections.written(form, claim_sections.sections(records, at_l0), captions.caption(records)), end="")
    return 0


def figures(runs: Runs, /, *, out: Path | None = None, overwrite: bool = False) -> int:
    """Draw the figures of one or more runs as SVG, PDF and PNG.

    Args:
        out: Folder to write them to. Default: figures in the first run's folder.
        overwrite: Replace files of these names that were not drawn there, or were changed since.
    """
    from sae_bench.leaderboard.board import Board
    from sae_bench.leaderboard.figures import draw
    from sae_bench.records.ownership import check_drawable, write_drawn

    folder = out or runs[0] / "figures"
    drawn = dict(draw.figures(_read(Board.read, runs)))
    if not overwrite:
        check_drawable(folder, drawn)
    write_drawn(folder, drawn)
    for name in drawn:
        print(folder / name)
    return 0


def report(runs: Runs, /, *, out: Path | None = None, at_l0: L0s = None, overwrite: bool = False) -> int:
    """Write one HTML file that shows runs: board, plots, comparisons, SAEs, latents. It needs no network.

    Args:
        out: The file. Default: report.html in the first run's folder.
        overwrite: Replace a report.html there that was not drawn there, or was changed since.
    """
    from sae_bench.leaderboard.board import Board
    from sae_bench.leaderboard.html import report as page
    from sae_bench.records.files import write_text
    from sae_bench.records.ownership import check_drawable, write_drawn

    text = page.report(_read(Board.read, runs), at_l0)
    if out is not None:  # named, so meant
        write_text(out, text)
    else:
        drawn = {"report.html": text.encode()}
        if not overwrite:
            check_drawable(runs[0], drawn)
        write_drawn(runs[0], drawn)
    print(out or runs[0] / "report.html")
    return 0


def board(runs: Runs, /, *, out: Path | None = None, at_l0: L0s = None, overwrite: bool = False) -> int:
    """Write a board: a run's records with tables, claims, figures and report, without weights.

    Several folders are parts of one run, as seeds trained on several machines, and become one board.

    Args:
        out: The board's folder. Default, of one: draw everything anew where it is.
        overwrite: Replace files of a board's names that were not drawn there, or were changed since.
    """
    from sae_bench.leaderboard.board_folder import draw_board

    for name in draw_board(runs, out, at_l0, overwrite=overwrite):
        print((out or runs[0]) / name)
    return 0


def _read(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What runs hold, for as long as this process lives: nothing of it is looked through for what may be collected."""
    gc.disable()
    try:
        return read(*args, **kwargs)
    finally:
        gc.freeze()
        gc.enable()
