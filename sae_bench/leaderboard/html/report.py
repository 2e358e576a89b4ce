"""`report`: a board as one HTML file that works from disk, without network, and with the same bytes every time.

The board and the comparisons are plain HTML; plots, SAEs and latents are drawn by one script from JSON inside the file.
Text from records may come from anyone: the template escapes it, the JSON holds no character that HTML knows, the script
makes text nodes alone, and a content security policy lets no other script run and nothing be loaded.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from sae_bench.errors import one_line
from sae_bench.leaderboard import tables
from sae_bench.leaderboard.board import Board
from sae_bench.leaderboard.claims import METRICS, check_claims
from sae_bench.leaderboard.compare import Comparison, check_metrics, comparisons
from sae_bench.leaderboard.compare_table import RULE, Row, grid, heading, note, summaries
from sae_bench.leaderboard.curves import AT_L0
from sae_bench.leaderboard.html.report_data import board_data
from sae_bench.leaderboard.verdicts import JudgedClaim

TEMPLATES = resources.files("sae_bench.leaderboard.html") / "templates"


def report(board: Board, l0s: Sequence[float] = AT_L0) -> str:
    """The whole page."""
    style, script = (TEMPLATES.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    metrics = check_metrics(board.records, None)
    compared = comparisons(board.records, metrics)
    data = board_data(board)
    header, rows = tables.board(tables.long_table(board.records), one_line)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATES.joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        title=f"SAE architectures on {', '.join(sorted({one_line(setting[0]) for setting in board.settings}))}",
        caption=one_line(tables.caption(board.records, tables.ERROR)),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_digest(script)}'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(embedded(data)),
        header=header,
        rows=list(zip(_keys(board, data), rows, strict=True)),
        failures=tables.failed(board.records),
        comparisons=[_comparison(comparison, metric, l0s) for comparison in compared for metric in metrics],
        summaries=[(one_line(title), *rest) for title, *rest in summaries(compared, metrics, l0s)],
        comparison_rule=RULE,
        comparison_note=note(compared) if compared else "",
        claims=_claims(comparisons(board.records, METRICS), l0s),
    )


def embedded(content: Any) -> str:
    """JSON that may stand in a script element: no tag, comment or entity begins in it."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _keys(board: Board, data: dict[str, Any]) -> list[str]:
    """The SAEs' keys in the order of the leaderboard's rows."""
    key_of = {
        (sae.records[0].provenance.config_hash[:8], sae.id): about["key"]
        for sae, about in zip(board.saes, data["saes"], strict=True)
    }
    return [key_of[row] for row in tables.row_order(tables.long_table(board.records))]


def _comparison(comparison: Comparison, metric: str, l0s: Sequence[float]) -> tuple[str, list[str], list[Row]]:
    columns, rows = grid(comparison, metric, l0s)
    return heading(comparison, metric, one_line), columns, [(one_line(label), cells) for label, cells in rows]


def _claims(found: Sequence[Comparison], l0s: Sequence[float]) -> list[tuple[str, JudgedClaim]]:
    return [(one_line(str(comparison.setting)), judged) for comparison, judged in check_claims(found, l0s)]
