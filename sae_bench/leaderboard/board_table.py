"""The board with columns and groupings of one's choice: `table RUN... --columns ... --group-by ... --over-seeds`.

Groups share a table, one after the other. Over seeds, a row is the mean of an architecture's SAEs at one target, and ±
half of its 95% interval over documents and seeds (`resample`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from sae_bench.errors import UserError, did_you_mean, one_line
from sae_bench.leaderboard import captions, order, render, tables
from sae_bench.leaderboard.bootstrap import estimate
from sae_bench.leaderboard.compare import Comparison, Setting, comparisons
from sae_bench.leaderboard.compare_table import note, on_front, with_interval
from sae_bench.leaderboard.load import metrics_of
from sae_bench.leaderboard.margins import PREFIX, Margins, controls_of
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
    top: int | None = None,
) -> str:
    """The table as text, md, tex or csv; `top`: of that many architectures at each target, and the best control.

    Raises:
        UserError: a column or a group does not exist, or a column is the margin of what has no better direction.
    """
    groups = list(group_by or ())
    for name in groups:
        if name not in GROUPS:
            raise UserError(f'--group-by: unknown key "{name}"{did_you_mean(name, GROUPS)}')
    known = metrics_of(records, _plain(columns or ()))  # or its error
    for name in columns or ():
        if name.startswith(PREFIX) and known[name.removeprefix(PREFIX)].better is None:
            raise UserError(f"--columns {name}: no value of it is better than another; leave it out")
    metrics = tables.headline(records) if columns is None else columns
    rows = _means(records, metrics) if over_seeds else tables.lines(records, metrics)
    if top is not None:
        kept = order.top(records, top)
        rows = [row for row in rows if _row(row) in kept]
    rows.sort(key=lambda line: tuple(_sortable(line.of.get(name)) for name in groups))
    fixed = [key for key in tables.told_apart(rows) if key not in groups]
    if form == "csv":
        named = [*groups, *fixed, *(["control"] if any(line.of["control"] for line in rows) else [])]
        return render.csv_table(pd.DataFrame([{name: line.name(name) for name in named} | line.cells for line in rows]))
    groups_of: dict[str, list[tables.Line]] = {}
    for line in rows:
        title = ", ".join(f"{name} {line.name(name)}" for name in groups)
        groups_of.setdefault(title, []).append(line)
    parts = {title: tables.body(of, fixed, metrics) for title, of in groups_of.items()}
    header = tables.header(records, fixed, metrics)
    facts = captions.caption(records, error=captions.of_front(records) if over_seeds else captions.of_rows(records))
    if over_seeds:
        facts = f"{facts} {note(comparisons(records, _plain(metrics)))}"
    return _latex(parts, header, len(fixed), facts) if form == "tex" else _text(parts, header, facts, *STYLES[form])


def _plain(columns: Sequence[str]) -> list[str]:
    """The metrics that columns are of, margins being of one, too."""
    return list(dict.fromkeys(name.removeprefix(PREFIX) for name in columns))


def _means(records: Sequence[Record], columns: Sequence[str]) -> list[tables.Line]:
    """A row for each architecture and target: the mean over seeds, with its interval."""
    found, main = [], order.primary(records)
    margin_of = {
        name: Margins.of(records, name.removeprefix(PREFIX), over_seeds=True)
        for name in columns
        if name.startswith(PREFIX)
    }
    for comparison in comparisons(records, [*_plain(columns), *([main] if main else [])], controls=True):
        of = {**asdict(comparison.setting), "layer": comparison.records[0].sae.site.layer}
        front = on_front(comparison, main) if main else {}
        for label, points in comparison.points("l0").items():
            about = of | {"architecture": label, "control": label in controls_of(comparison)}
            for target in points.targets:
                cells = {
                    name: margin_of[name].cell(comparison.setting, label, target, None, with_interval)
                    if name in margin_of
                    else _mean(comparison, name, label, target)
                    for name in columns
                }
                mark = "*" if target in front.get(label, ()) else ""
                found.append(tables.Line(about | {"target": target, "front": mark}, cells))
    return sorted(found, key=lambda line: (line.of["control"], _setting(line), not line.of["front"]))


def _row(line: tables.Line) -> order.Row:
    """What seeds of it have in common; nobody knows the target of an SAE that others trained."""
    target = line.of["target"]
    return Setting(*_setting(line)), None if pd.isna(target) else float(target), line.of["architecture"]


def _setting(line: tables.Line) -> tuple[Any, ...]:
    return tuple(line.of[name] for name in ("model", "site", "width"))


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
