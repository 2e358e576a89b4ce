"""`board`: a run without its weights, and every table, figure and page that can be made of it, in one folder.

What is copied is what outputs are drawn from; what is drawn, is drawn from the copy. So `board FOLDER` on a board's own
folder makes the same bytes again, and whoever doubts a board can.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from sae_bench.errors import UserError
from sae_bench.leaderboard import captions, compare_table, tables
from sae_bench.leaderboard.board import TRAINING_LOG, Board
from sae_bench.leaderboard.claims import METRICS, as_markdown, check_claims
from sae_bench.leaderboard.compare import check_metrics, comparisons
from sae_bench.leaderboard.figures.draw import figures
from sae_bench.leaderboard.html.report import report
from sae_bench.leaderboard.load import gather
from sae_bench.leaderboard.matched import default_l0s
from sae_bench.records.files import write_bytes

SOURCES = ("run.json", "records/*.json", f"saes/*/{TRAINING_LOG}", "latents/*/*.json")
"""What a board is drawn from."""


def copy_sources(run: Path, to: Path) -> None:
    """Copy what a board is drawn from.

    Raises:
        UserError: the folder holds another board, or there are no records.
    """
    gather([run])
    for pattern in SOURCES:
        wanted = {path.relative_to(run) for path in run.glob(pattern)}
        strange = sorted(path.relative_to(to) for path in to.glob(pattern) if path.relative_to(to) not in wanted)
        if strange:
            raise UserError(f"--out {to} holds another board ({strange[0]} is not of {run}): choose another --out")
    for pattern in SOURCES:
        for path in sorted(run.glob(pattern)):
            write_bytes(to / path.relative_to(run), path.read_bytes())


def outputs(folders: Sequence[Path], l0s: Sequence[float] | None = None) -> Iterator[tuple[str, bytes]]:
    """Name and content of everything that is drawn: tables, claims, figures, report."""
    board = Board.read(folders)
    l0s = l0s or default_l0s(board.records)
    metrics = check_metrics(board.records, None)
    compared, facts = comparisons(board.records, metrics), captions.caption(board.records)
    texts = tables.board_files(board.records) | {
        "compare.md": compare_table.written("md", compared, metrics, l0s, facts) + "\n",
        "compare.tex": compare_table.written("tex", compared, metrics, l0s, facts),
        "compare.csv": compare_table.written("csv", compared, metrics, l0s),
        "claims.md": as_markdown(check_claims(comparisons(board.records, METRICS), l0s)),
        "report.html": report(board, l0s),
    }
    for name, text in texts.items():
        yield name, text.encode()
    for name, content in figures(board):
        yield f"figures/{name}", content


def draw_board(run: Path, out: Path | None, l0s: Sequence[float] | None = None) -> list[str]:
    """Write the folder, or without `out` everything that is drawn anew where it is; return the names of what was drawn.

    Raises:
        UserError: there are no records, they are not comparable, or the folder holds another board.
    """
    folder = out or run
    if out is not None and out.resolve() != run.resolve():
        copy_sources(run, out)
    drawn = dict(outputs([folder], l0s))
    shutil.rmtree(folder / "figures", ignore_errors=True)  # one that is drawn no more would stay
    for name, content in drawn.items():
        write_bytes(folder / name, content)
    return list(drawn)
