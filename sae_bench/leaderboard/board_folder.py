"""`board`: a run without its weights, and every table, figure and page that can be made of it, in one folder.

What is copied is what outputs are drawn from; what is drawn, is drawn from the copy. So `board FOLDER` on a board's own
folder makes the same bytes again, and whoever doubts a board can. Nothing is copied but regular files that a seal
covers, and nothing is drawn over but what was drawn: `drawn.json` says what that was, and what the training logs were.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sae_bench.errors import UserError
from sae_bench.leaderboard import captions, claim_sections, compare_table, tables
from sae_bench.leaderboard.board import TRAINING_LOG, Board
from sae_bench.leaderboard.compare import check_metrics, comparisons
from sae_bench.leaderboard.figures.draw import figures
from sae_bench.leaderboard.html.report import report
from sae_bench.leaderboard.load import gather
from sae_bench.leaderboard.matched import default_l0s
from sae_bench.records.files import read_sealed, sha256, write_bytes
from sae_bench.records.ownership import OVERWRITE, check_drawable, read_drawn, regular_file, sealed, write_drawn
from sae_bench.records.run_folder import SAE_DESCRIPTION

log = logging.getLogger(__name__)

SOURCES = ("run.json", "records/*.json", f"saes/*/{TRAINING_LOG}", "latents/*/*.json")
"""What a board is drawn from."""


def read_sources(run: Path, to: Path) -> dict[str, bytes]:
    """What a board is drawn from, by its path in the folder; a training log that no seal covers is left out.

    Raises:
        UserError: the folder `to` holds another board, a file is damaged or a link, or there are no records.
    """
    for path in run.glob("records/*.json"):
        regular_file(run, path)
    gather([run])
    found = {}
    for pattern in SOURCES:
        wanted = {path.relative_to(run) for path in run.glob(pattern)}
        strange = sorted(path.relative_to(to) for path in to.glob(pattern) if path.relative_to(to) not in wanted)
        if strange:
            raise UserError(f"--out {to} holds another board ({strange[0]} is not of {run}): choose another --out")
        for path in sorted(run.glob(pattern)):
            name = str(regular_file(run, path).relative_to(run))
            if path.name != TRAINING_LOG:
                read_sealed(path)
            elif not _is_covered(run, path):
                log.warning("%s is left out: no seal covers it as it is now", path)
                continue
            found[name] = path.read_bytes()
    return found


def _is_covered(run: Path, path: Path) -> bool:
    """Whether a training log is what an SAE's description, or an earlier board, says."""
    description = sealed(path.with_name(SAE_DESCRIPTION)) or {"files": {}}
    said = description["files"].get(path.name), read_drawn(run).get(str(path.relative_to(run)))
    return sha256(path) in said


def outputs(folders: Sequence[Path], l0s: Sequence[float] | None = None) -> Iterator[tuple[str, bytes]]:
    """Name and content of everything that is drawn: tables, claims, figures, report."""
    board = Board.read(folders)
    at = l0s or default_l0s(board.records)
    metrics = check_metrics(board.records, None)
    compared, facts = comparisons(board.records, metrics), captions.caption(board.records)
    claims = claim_sections.sections(board.records, l0s)
    texts = tables.board_files(board.records) | {
        "compare.md": compare_table.written("md", compared, metrics, at, facts) + "\n",
        "compare.tex": compare_table.written("tex", compared, metrics, at, facts),
        "compare.csv": compare_table.written("csv", compared, metrics, at),
        "claims.md": claim_sections.written("md", claims),
        "claims.tex": claim_sections.written("tex", claims, facts),
        "report.html": report(board, l0s),
    }
    for name, text in texts.items():
        yield name, text.encode()
    for name, content in figures(board):
        yield f"figures/{name}", content


def draw_board(
    run: Path,
    out: Path | None,
    l0s: Sequence[float] | None = None,
    *,
    overwrite: bool = False,
    elsewhere: str = OVERWRITE,
) -> list[str]:
    """Write the folder, or without `out` everything that is drawn anew where it is; return the names of what was drawn.

    Raises:
        UserError: there are no records, they are not comparable, or the folder holds another board; without
            `overwrite`, it holds files of these names that were not drawn there. `elsewhere` is what it says to do.
    """
    folder = out or run
    if folder.resolve() != run.resolve():
        sources = read_sources(run, folder)
        with tempfile.TemporaryDirectory() as copy:
            for name, content in sources.items():
                (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(copy) / name).write_bytes(content)
            drawn = dict(outputs([Path(copy)], l0s))
    else:  # a board's logs have no description beside them
        found = [path for path in run.glob(f"saes/*/{TRAINING_LOG}") if not path.with_name(SAE_DESCRIPTION).exists()]
        sources = {str(path.relative_to(run)): path.read_bytes() for path in found}
        drawn = dict(outputs([run], l0s))
    if not overwrite:
        check_drawable(folder, sources | drawn, elsewhere)
    logs = {name: content for name, content in sources.items() if name.endswith(TRAINING_LOG)}
    for name in sources.keys() - logs.keys():
        write_bytes(folder / name, sources[name])
    write_drawn(folder, logs | drawn, instead_of="figures/")
    return list(drawn)
