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
from sae_bench.leaderboard import captions, tables
from sae_bench.leaderboard.board import Board
from sae_bench.leaderboard.claims import METRICS, check_claims
from sae_bench.leaderboard.compare import check_metrics, comparisons
from sae_bench.leaderboard.compare_table import RULE, note, shown
from sae_bench.leaderboard.html.report_data import board_data
from sae_bench.leaderboard.matched import default_l0s
from sae_bench.leaderboard.render import CONTROLS

TEMPLATES = resources.files("sae_bench.leaderboard.html") / "templates"


def report(board: Board, l0s: Sequence[float] | None = None) -> str:
    """The whole page."""
    style, script = (TEMPLATES.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    l0s = l0s or default_l0s(board.records)
    metrics = check_metrics(board.records, None)
    compared = comparisons(board.records, metrics)
    data, digest = board_data(board), base64.b64encode(hashlib.sha256(script.encode()).digest())
    header, rows = tables.board(board.records)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATES.joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        title=f"SAE architectures on {', '.join(sorted({one_line(setting.model) for setting in board.settings}))}",
        caption=one_line(captions.caption(board.records, captions.of_rows(board.records))),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest.decode()}'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(embedded(data)),
        header=[one_line(name) for name in header],
        groups=_groups(rows, _keys(board, data)),
        failures=captions.failed(board.records),
        comparisons=[
            (one_line(table.title), table.header, [(one_line(label), cells) for label, cells in table.rows])
            for table in shown(compared, metrics, l0s)
        ],
        comparison_rule=RULE,
        comparison_note=note(compared) if compared else "",
        claims=[
            (one_line(str(comparison.setting)), judged)
            for comparison, judged in check_claims(comparisons(board.records, METRICS), l0s)
        ],
    )


def embedded(content: Any) -> str:
    """JSON that may stand in a script element: no tag, comment or entity begins in it."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _groups(rows: Sequence[Sequence[str]], keys: Sequence[str]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """The rows with their SAEs' keys, architectures' and controls' apart, each group with what stands above it."""
    groups: list[tuple[str, list[tuple[str, list[str]]]]] = [("", [])]
    remaining = iter(keys)
    for row in rows:
        if row[0] == CONTROLS:
            groups.append(("Controls", []))
        else:
            groups[-1][1].append((next(remaining), [one_line(cell) for cell in row]))
    return groups


def _keys(board: Board, data: dict[str, Any]) -> list[str]:
    """The SAEs' keys in the order of the leaderboard's rows."""
    key_of = {
        (sae.records[0].provenance.config_hash[:8], sae.id): about["key"]
        for sae, about in zip(board.saes, data["saes"], strict=True)
    }
    return [key_of[row.of["run"], row.of["sae"]] for row in tables.lines(board.records, ())]
