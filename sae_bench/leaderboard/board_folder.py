"""`board`: a run without its weights, or several parts of one, and all that is drawn of it, in one folder.

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
from sae_bench.leaderboard.parts import joined
from sae_bench.records.files import read_sealed, sha256, write_bytes
from sae_bench.records.ownership import OVERWRITE, check_drawable, read_drawn, regular_file, sealed, write_drawn
from sae_bench.records.run_folder import SAE_DESCRIPTION

log = logging.getLogger(__name__)

SOURCES = ("run.json", "records/*.json", f"saes/*/{TRAINING_LOG}", "latents/*/*.json")
"""What a board is drawn from."""


def read_sources(run: Path) -> dict[str, bytes]:
    """What a board is drawn from, by its path in the folder; a training log that no seal covers is left out.

    Raises:
        UserError: a file is damaged or a link, or there are no records.
    """
    for path in run.glob("records/*.json"):
        regular_file(run, path)
    gather([run])
    found = {}
    for pattern in SOURCES:
        for path in sorted(run.glob(pattern)):
            name = str(regular_file(run, path).relative_to(run))
            if path.name != TRAINING_LOG:
                read_sealed(path)
            elif not _is_covered(run, path):
                log.warning("%s is left out: no seal covers it as it is now", path)
                continue
            found[name] = path.read_bytes()
    return found


def _check_place(to: Path, runs: Sequence[Path]) -> None:
    """See that a folder holds nothing that other boards are drawn from."""
    wanted = {path.relative_to(run) for run in runs for pattern in SOURCES for path in run.glob(pattern)}
    strange = sorted({path.relative_to(to) for pattern in SOURCES for path in to.glob(pattern)} - wanted)
    if strange:
        of = " or ".join(map(str, runs))
        raise UserError(f"--out {to} holds another board ({strange[0]} is not of {of}): choose another --out")


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
    runs: Sequence[Path],
    out: Path | None,
    l0s: Sequence[float] | None = None,
    *,
    overwrite: bool = False,
    elsewhere: str = OVERWRITE,
) -> list[str]:
    """Write the folder, or without `out` everything that is drawn anew where it is; return the names of what was drawn.

    Several runs are parts of one (`parts`), and become one board.

    Raises:
        UserError: there are no records, they are not comparable, the runs are not parts of one, or the folder holds
            another board; without `overwrite`, it holds files of these names that were not drawn there. `elsewhere` is
            what it says to do.
    """
    folder = out or runs[0]
    in_place = folder.resolve() in [run.resolve() for run in runs]
    if in_place and len(runs) > 1:
        raise UserError(f"--out {folder}: parts become a board in a folder of its own; choose another --out")
    if in_place:  # a board's logs have no description beside them
        found = [path for path in folder.glob(f"saes/*/{TRAINING_LOG}") if not path.with_name(SAE_DESCRIPTION).exists()]
        sources = {str(path.relative_to(folder)): path.read_bytes() for path in found}
        drawn = dict(outputs([folder], l0s))
    else:
        _check_place(folder, runs)
        parts = [(run, read_sources(run)) for run in runs]
        sources = joined(parts) if len(parts) > 1 else parts[0][1]
        with tempfile.TemporaryDirectory() as copy:
            for name, content in sources.items():
                (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(copy) / name).write_bytes(content)
            drawn = dict(outputs([Path(copy)], l0s))
    if not overwrite:
        check_drawable(folder, sources | drawn, elsewhere)
    logs = {name: content for name, content in sources.items() if name.endswith(TRAINING_LOG)}
    for name in sources.keys() - logs.keys():
        write_bytes(folder / name, sources[name])
    write_drawn(folder, logs | drawn, instead_of="figures/")
    return list(drawn)
