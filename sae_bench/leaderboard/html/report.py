"""`report`: a board as one HTML file that works from disk and without network, and opens on the answer.

Verdict, comparisons, claims and where all comes from are plain HTML; the figure, the board, SAEs and latents are drawn
by one script from JSON inside the file. The same records give the same page, byte for byte where zlib is the same.
Text from records may come from anyone: the template escapes it, the JSON is in letters that HTML does not know, the
script makes text nodes alone, and a content security policy lets no other script run and nothing be loaded.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import Any

from markupsafe import Markup

from sae_bench.errors import one_line
from sae_bench.leaderboard import answer, captions, claim_sections, order, tables
from sae_bench.leaderboard.board import Board
from sae_bench.leaderboard.compare import Comparison, check_metrics, comparisons
from sae_bench.leaderboard.compare_table import RULE, shown
from sae_bench.leaderboard.html.made import command, made
from sae_bench.leaderboard.html.packing import packed
from sae_bench.leaderboard.html.page import OWN_SERVER, embedded, page
from sae_bench.leaderboard.html.plain_words import explained
from sae_bench.leaderboard.html.report_data import board_data
from sae_bench.leaderboard.load import metrics_of
from sae_bench.leaderboard.matched import default_l0s
from sae_bench.leaderboard.notes import note
from sae_bench.leaderboard.setting import Setting
from sae_bench.records.names import true_name
from sae_bench.records.schema import Metric

TEMPLATES = resources.files("sae_bench.leaderboard.html") / "templates"

SCRIPTS = ("base", "board", "plot", "sae", "pair", "latents", "try", "route")
"""Parts of the page's script, in their order."""
TRY = "try"
"""The part that asks the server of the page."""

MOST_VERDICTS = 8
"""Settings that are spoken of one by one; of more, it is counted in how many each architecture is best."""
MOST_STATIC_ROWS = 200
"""Rows of the table that is shown where there is no script."""


def report(board: Board, l0s: Sequence[float] | None = None, serving: Sequence[str] = ()) -> str:
    """The whole page; `serving`: SAEs, by name, about which the server of the page can be asked."""
    script = script_of(part for part in SCRIPTS if serving or part != TRY)
    at = l0s or default_l0s(board.records)
    metrics, known = check_metrics(board.records, None), metrics_of(board.records)
    compared = comparisons(board.records, metrics)
    header, rows = tables.board(board.records)
    data, claims, runs = board_data(board), claim_sections.sections(board.records, l0s), made(board)
    return page(
        _template("report.html"),
        _template("report.css"),
        script,
        OWN_SERVER if serving else "",
        served=Markup(embedded(list(serving))) if serving else "",
        title=f"SAE architectures on {', '.join(sorted({one_line(true_name(s.model)) for s in board.settings}))}",
        control=captions.control(board.records),
        **_verdicts(board, compared, at),
        caption=one_line(captions.caption(board.records, captions.of_rows(board.records))),
        data=Markup(packed(data)),
        header=[one_line(name) for name in header],
        rows=[[one_line(cell) for cell in row] for row in rows[:MOST_STATIC_ROWS]],
        n_saes=len(board.saes),
        failures=captions.failed(board.records),
        remarks=captions.remarks(board.records),
        comparisons=[
            (one_line(f"{table.what}: {_place(table.of.setting)}" if table.of else table.what),
             _meaning(table.what, known), table.header,
             [(one_line(label), cells) for label, cells in table.rows])
            for table in shown(compared, metrics, at)
        ],
        comparison_rule=RULE,
        comparison_note=note(compared, at) if compared else "",
        claims_answered=claim_sections.total(claims),
        claims=[
            (of.title, of.summary, [(_place(comparison.setting), judged) for comparison, judged in of.found])
            for of in claims
            if of.found
        ],
        made=runs,
        command=command,
        first_command=partial(command, runs[0]["settings"][0]),
        n_latents=sum(map(len, data["latents"])),
        n_explained=sum(bool(one["explanation"]) for of in data["latents"] for one in of),
    )  # fmt: skip


def script_of(parts: Iterable[str]) -> str:
    """The script of a page, of its parts."""
    return "\n".join(TEMPLATES.joinpath("script", f"{part}.js").read_text(encoding="utf-8") for part in parts)


def _template(name: str) -> str:
    return TEMPLATES.joinpath(name).read_text(encoding="utf-8")


def _verdicts(board: Board, compared: Sequence[Comparison], l0s: Sequence[float]) -> dict[str, Any]:
    """What the page says first: one sentence as its heading, and the settings' verdicts below it."""
    metric = order.primary(board.records)
    found = answer.verdicts(compared, metric, l0s) if metric else []
    if not found:
        return {"headline": f"{len(board.saes)} SAEs, measured and not compared", "verdicts": [], "more_verdicts": 0}
    headline = found[0].sentence if len(found) == 1 else answer.over_settings(found)
    return {"headline": headline, "verdicts": found[:MOST_VERDICTS], "more_verdicts": len(found) - MOST_VERDICTS}


def _meaning(what: str, known: Mapping[str, Metric]) -> str:
    """What the metric of a table is, whose title begins with its name."""
    return next((explained(of) for name, of in known.items() if re.match(rf"{re.escape(name)}(?!\w)", what)), "")


def _place(setting: Setting) -> str:
    """Where it was measured, with the model as people know it."""
    return one_line(str(replace(setting, model=true_name(setting.model))))
