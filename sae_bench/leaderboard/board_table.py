"""The board with columns and groupings of one's choice: `table RUN... --columns ... --group-by ... --over-seeds`.

Groups share a table, one after the other. Over seeds, a row is the mean of an architecture's SAEs at one target, and ±
half of its 95% interval over documents and seeds (`resample`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from sae_bench.errors import UserError, did_you_mean, one_line
from sae_bench.leaderboard import render, tables
from sae_bench.leaderboard.bootstrap import estimate
from sae_bench.leaderboard.compare import Comparison, comparisons
from sae_bench.leaderboard.compare_table import note, with_interval
from sae_bench.leaderboard.load import metrics_of
from sae_bench.records.schema import Record

GROUPS = ("model", "site", "layer", "width", "architecture", "target", "seed")
"""What rows may be grouped by."""


STYLES: dict[str, tuple[str, render.Escape, str]] = {
    "text": ("simple", one_line, "{}"),
    "md": ("pipe", render.escape_markdown, "**{}**"),
}
"""The forms of plain text: tabulate's style, what makes text harmless, and what a group's title looks like."""


def table(
    records: Sequence[Record],
    form: str = "text",
    columns: Sequence[str] | None = None,
    group_by: Sequence[str] | None = None,
    *,
    over_seeds: bool = False,
) -> str:
    """The table as text, md, tex or csv.

    Raises:
        UserError: a column or a group does not exist.
    """
    groups = list(group_by or ())
    for name in groups:
        if name not in GROUPS:
            raise UserError(f'--group-by: unknown key "{name}"{did_you_mean(name, GROUPS)}')
    metrics_of(records, columns or ())  # or its error
    metrics = tables.headline(records) if columns is None else columns
    rows = _means(records, metrics) if over_seeds else tables.lines(records, metrics)
    rows.sort(key=lambda line: tuple(_sortable(line.of.get(name)) for name in groups))
    fixed = [key for key in tables.told_apart(rows) if key not in groups]
    if form == "csv":
        return render.csv_table(
            pd.DataFrame([{name: line.name(name) for name in (*groups, *fixed)} | line.cells for line in rows])
        )
    parts: dict[str, list[list[str]]] = {}
    for line in rows:
        title = ", ".join(f"{name} {line.name(name)}" for name in groups)
        parts.setdefault(title, []).append(line.row(fixed, metrics))
    header = tables.header(records, fixed, metrics)
    facts = tables.caption(records, error="" if over_seeds else tables.ERROR)
    if over_seeds:
        facts = f"{facts} {note(comparisons(records, metrics))}"
    return _latex(parts, header, len(fixed), facts) if form == "tex" else _text(parts, header, facts, *STYLES[form])


def _means(records: Sequence[Record], columns: Sequence[str]) -> list[tables.Line]:
    """A row for each architecture and target: the mean over seeds, with its interval."""
    found = []
    for comparison in comparisons(records, columns):
        of = {**asdict(comparison.setting), "layer": comparison.records[0].sae.site.layer}
        for label, points in comparison.points("l0").items():
            for target in points.targets:
                cells = {metric: _mean(comparison, metric, label, target) for metric in columns}
                found.append(tables.Line(of | {"architecture": label, "target": target}, cells))
    return found


def _mean(comparison: Comparison, metric: str, label: str, target: float) -> str:
    points = comparison.points(metric).get(label)
    if points is None or target not in points.targets:
        return "undefined"
    return with_interval(estimate(points.value[:, points.targets.index(target)], comparison.design))


def _sortable(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), -1 if pd.isna(value) else value


def _text(
    parts: Mapping[str, Sequence[Sequence[str]]], header: Sequence[str], facts: str, style: str, escape: render.Escape,
    heading: str,
) -> str:  # fmt: skip
    drawn = []
    for title, body in parts.items():
        drawn += [heading.format(escape(title))] if title else []
        drawn.append(render.text_table(header, body, style, escape))
    return "\n\n".join([*drawn, escape(facts)]) + "\n"


def _latex(parts: Mapping[str, Sequence[Sequence[str]]], header: Sequence[str], n_fixed: int, facts: str) -> str:
    lines: list[str] = []
    for title, body in parts.items():
        lines += [r"\midrule"] if lines else []
        if title:
            lines.append(rf"\multicolumn{{{len(header)}}}{{l}}{{\emph{{{render.escape_latex(title)}}}}} \\")
        lines += map(render.latex_line, body)
    columns = "l" * n_fixed + "r" * (len(header) - n_fixed)
    return render.latex_table(columns, render.latex_line(header), lines, render.escape_latex(facts))
