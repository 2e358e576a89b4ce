"""The board with columns and groupings of one's choice: `table RUN... --columns ... --group-by ... --over-seeds`.

Groups share a table, one after the other. Over seeds, a row is the mean of an architecture's SAEs at one target, and ±
half of its 95% interval over documents and seeds (`resample`).
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tabulate import tabulate

from sae_bench.errors import UserError, did_you_mean, one_line
from sae_bench.leaderboard import tables
from sae_bench.leaderboard.bootstrap import estimate
from sae_bench.leaderboard.compare import Comparison, comparisons
from sae_bench.leaderboard.compare_table import note, with_interval
from sae_bench.leaderboard.render import ARROWS, LATEX_ARROWS, escape_csv, escape_latex, escape_markdown, latex_table
from sae_bench.records.schema import Record

GROUPS = ("model", "site", "layer", "width", "architecture", "target", "seed")
"""What rows may be grouped by."""


@dataclass(frozen=True)
class Line:
    """One row: what it is of, and its cells by metric."""

    of: Mapping[str, Any]
    cells: Mapping[str, str]


def choose(records: Sequence[Record], columns: Sequence[str] | None) -> list[str]:
    """The metrics to show: those asked for, else L0 and the headline ones.

    Raises:
        UserError: one of them is in no record.
    """
    known = {name: metric for record in records for name, metric in record.metrics.items()}
    for name in columns or ():
        if name not in known:
            raise UserError(f'--columns: unknown metric "{name}"{did_you_mean(name, known)}')
    names = list(columns or (name for name, metric in known.items() if metric.headline))
    return sorted(names, key=lambda name: name != "l0") if columns is None else names


def lines(records: Sequence[Record], columns: Sequence[str], *, over_seeds: bool) -> list[Line]:
    """The rows, in the board's order."""
    layers = {record.sae.site.name: record.sae.site.layer for record in records}
    if over_seeds:
        return [
            line for comparison in comparisons(records, columns) for line in _of_comparison(comparison, columns, layers)
        ]
    table = tables.long_table(records)
    cells = {(row.run, row.sae, row.metric): row for row in table.itertuples()}
    about = {(row.run, row.sae): row for row in table.itertuples()}
    return [
        Line(
            {name: getattr(about[key], name) for name in ("model", "site", "width", "architecture", "target", "seed")}
            | {"layer": layers[str(about[key].site)], "run": key[0]},
            {metric: tables.cell(cells.get((*key, metric))) for metric in columns},
        )
        for key in tables.row_order(table)
    ]


def _of_comparison(comparison: Comparison, columns: Sequence[str], layers: Mapping[str, Any]) -> list[Line]:
    setting = comparison.setting
    found = []
    for architecture in comparison.architectures:
        for target in architecture.metrics["l0"].targets if "l0" in architecture.metrics else ():
            cells = {}
            for metric in columns:
                points = architecture.metrics.get(metric)
                if points is None or target not in points.targets:
                    cells[metric] = "undefined"
                    continue
                cells[metric] = with_interval(
                    estimate(points.value[:, points.targets.index(target)], comparison.design)
                )
            of = {"model": setting.model, "site": setting.site, "layer": layers[setting.site], "width": setting.width,
                  "architecture": architecture.label, "target": target}  # fmt: skip
            found.append(Line(of, cells))
    return found


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
    for name in group_by or ():
        if name not in GROUPS:
            raise UserError(f'--group-by: unknown key "{name}"{did_you_mean(name, GROUPS)}')
    metrics = choose(records, columns)
    rows = lines(records, metrics, over_seeds=over_seeds)
    groups = list(group_by or ())
    rows.sort(key=lambda line: tuple(_sortable(line.of.get(name)) for name in groups))
    keys = [name for name in ("model", "site", "width", "architecture", "target", "seed", "run") if name not in groups]
    several = {name for name in keys if len({line.of.get(name) for line in rows}) > 1} | {"architecture", "target"}
    fixed = [name for name in keys if name in several]
    seeds = note(comparisons(records, metrics)) if over_seeds else ""
    facts = tables.caption(records, error="" if over_seeds else tables.ERROR)
    return _WRITERS[form](rows, groups, fixed, _arrows(records, metrics), " ".join(filter(None, [facts, seeds])))


def _sortable(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value if value is not None else -1


def _arrows(records: Sequence[Record], metrics: Sequence[str]) -> dict[str, str | None]:
    better = {name: metric.better for record in records for name, metric in record.metrics.items()}
    return {name: better[name] for name in metrics}


def _grouped(rows: Sequence[Line], groups: Sequence[str]) -> dict[str, list[Line]]:
    """Rows by what their group is called."""
    found: dict[str, list[Line]] = {}
    for line in rows:
        found.setdefault(", ".join(f"{name} {_plain(line.of.get(name))}" for name in groups), []).append(line)
    return found


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _body(rows: Sequence[Line], fixed: Sequence[str], metrics: Sequence[str]) -> list[list[str]]:
    return [[_plain(line.of[name]) for name in fixed] + [line.cells[name] for name in metrics] for line in rows]


def _plain_table(style: str, escape: Callable[[str], str], title: str) -> Callable[..., str]:
    def write(
        rows: Sequence[Line], groups: Sequence[str], fixed: Sequence[str], arrows: Mapping[str, str | None], facts: str
    ) -> str:
        header = [*fixed, *(f"{name} {ARROWS[better]}".rstrip() for name, better in arrows.items())]
        parts = []
        for name, of in _grouped(rows, groups).items():
            body = [[escape(cell) for cell in row] for row in _body(of, fixed, list(arrows))]
            drawn = tabulate(body, [escape(cell) for cell in header], tablefmt=style, disable_numparse=True)
            parts += [title.format(escape(name)), drawn] if name else [drawn]
        return "\n\n".join([*parts, escape(facts)]) + "\n"

    return write


def _latex(
    rows: Sequence[Line], groups: Sequence[str], fixed: Sequence[str], arrows: Mapping[str, str | None], facts: str
) -> str:
    header = [*map(escape_latex, fixed), *(escape_latex(n) + LATEX_ARROWS[b] for n, b in arrows.items())]
    body: list[str] = []
    for name, of in _grouped(rows, groups).items():
        title = [rf"\multicolumn{{{len(header)}}}{{l}}{{\emph{{{escape_latex(name)}}}}} \\"] if name else []
        body += [*([r"\midrule"] if body else []), *title]
        body += [" & ".join(map(escape_latex, row)) + r" \\" for row in _body(of, fixed, list(arrows))]
    columns = "l" * len(fixed) + "r" * len(arrows)
    return latex_table(columns, " & ".join(header) + r" \\", body, escape_latex(facts))


def _csv(
    rows: Sequence[Line], groups: Sequence[str], fixed: Sequence[str], arrows: Mapping[str, str | None], facts: str
) -> str:
    names = [*groups, *fixed]
    table = pd.DataFrame([{name: _plain(line.of.get(name)) for name in names} | dict(line.cells) for line in rows])
    out = io.StringIO()
    table.map(escape_csv).to_csv(out, index=False, lineterminator="\n")
    return out.getvalue()


_WRITERS = {
    "text": _plain_table("simple", one_line, "{}"),
    "md": _plain_table("pipe", escape_markdown, "**{}**"),
    "tex": _latex,
    "csv": _csv,
}
