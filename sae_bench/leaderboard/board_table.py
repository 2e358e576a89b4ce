"""The board with columns and groupings of one's choice: `table RUN... --columns ... --group-by ... --over-seeds`.

Groups share a table, one after the other. Over seeds, a row is the mean of an architecture's SAEs at one target, and ±
half of its 95% interval over documents and seeds (`resample`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sae_bench.errors import UserError, did_you_mean, one_line
from sae_bench.leaderboard import captions, order, render, tables
from sae_bench.leaderboard.bootstrap import estimate
from sae_bench.leaderboard.compare import Comparison, comparisons
from sae_bench.leaderboard.compare_table import on_front, with_interval
from sae_bench.leaderboard.latex_tables import latex_tables
from sae_bench.leaderboard.load import metrics_of
from sae_bench.leaderboard.margins import PREFIX, Margins, controls_of
from sae_bench.leaderboard.notes import note
from sae_bench.leaderboard.setting import Setting
from sae_bench.leaderboard.text_tables import prose, text_tables
from sae_bench.records.names import natural_order
from sae_bench.records.schema import Record

GROUPS = ("model", "site", "layer", "width", "architecture", "target", "seed")
"""What rows may be grouped by."""

ALL = "all"
"""`--columns all`: every headline metric, however many tables it takes."""


def terminal(records: Sequence[Record], wide: int | None = None) -> str:
    """The board as text, at most `wide` letters wide if that is given, with what failed and what to know."""
    failures = "".join(f"FAILED {line}\n" for line in captions.failed(records))
    known = "".join(f"{line}\n" for line in captions.remarks(records))
    above = f"{one_line(captions.control(records))}\n\n".lstrip()
    return f"{above}{table(records, wide=wide)}{failures}{known}"


def table(
    records: Sequence[Record],
    form: str = "text",
    columns: Sequence[str] | None = None,
    group_by: Sequence[str] | None = None,
    *,
    over_seeds: bool = False,
    top: int | None = None,
    wide: int | None = None,
) -> str:
    """The table as text, md, tex or csv; `top`: of that many architectures at each target, and the best control.

    Text is at most `wide` letters wide, if that is given: columns that were not asked for and find no room are named,
    those that were are in tables below.

    Raises:
        UserError: a column or a group does not exist, or a column is the margin of what has no better direction.
    """
    check(records, columns, group_by)
    chosen = columns is not None
    metrics = tables.headline(records) if columns is None or [*columns] == [ALL] else [*columns]
    rows = _means(records, metrics) if over_seeds else tables.lines(records, metrics)
    if top is not None:
        kept = order.top(records, top)
        rows = [row for row in rows if _row(row) in kept]
    apart = tables.told_apart(rows)
    if group_by is None:
        groups = [key for key in apart if key in tables.OF_SETTING and form in ("text", "tex")]
    else:
        groups = [*group_by]
    rows.sort(key=lambda line: tuple(_sortable(line.of.get(name)) for name in groups))
    fixed = [key for key in apart if key not in groups]
    if form == "csv":
        import pandas as pd

        named = [*groups, *fixed, *(["control"] if any(line.of["control"] for line in rows) else [])]
        return render.csv_table(pd.DataFrame([{name: line.name(name) for name in named} | line.cells for line in rows]))
    parts = {title: tables.body(of, fixed, metrics) for title, of in tables.in_groups(rows, groups).items()}
    header, n_keys = tables.header(records, fixed, metrics), tables.n_in_every_table(fixed, metrics)
    error = _over_seeds(records, metrics) if over_seeds else captions.of_rows(records)
    facts = captions.caption(records, error)
    if form == "tex":
        return latex_tables(parts, header, n_keys, captions.caption(records, error, paper=True), "leaderboard", facts)
    if form == "md":
        return _markdown(parts, header, facts)
    foremost = [len(fixed) + metrics.index(name) for name in tables.foremost(records, metrics)]
    text, left = text_tables(parts, header, n_keys, wide, None if chosen else foremost)
    told = [prose(f"No room for {', '.join(left)}: --columns {ALL}, or the names of some.", wide)] if left else []
    return "\n\n".join([text, *told, prose(facts, wide)]) + "\n"


def check(records: Sequence[Record], columns: Sequence[str] | None, group_by: Sequence[str] | None) -> None:
    """Raise UserError if a column or a group does not exist, or a column is a margin that cannot be."""
    for name in group_by or ():
        if name not in GROUPS:
            raise UserError(f'--group-by: unknown key "{name}"{did_you_mean(name, GROUPS)}')
    if [*(columns or ())] == [ALL]:
        return
    known = metrics_of(records, _plain(columns or ()))  # or its error
    for name in columns or ():
        if name.startswith(PREFIX) and known[name.removeprefix(PREFIX)].better is None:
            raise UserError(f"--columns {name}: no value of it is better than another; leave it out")


def _over_seeds(records: Sequence[Record], columns: Sequence[str]) -> str:
    """What ± and marks are where a row is a mean over seeds."""
    return f"{note(comparisons(records, _plain(columns)))} {captions.of_marks(records)}".rstrip()


def _plain(columns: Sequence[str]) -> list[str]:
    """The metrics that columns are of, margins being of one, too."""
    return list(dict.fromkeys(name.removeprefix(PREFIX) for name in columns))


def _means(records: Sequence[Record], columns: Sequence[str]) -> list[tables.Line]:
    """A row for each architecture and target: the mean over seeds, with its interval."""
    found, main = [], order.primary(records)
    wanted = [name.removeprefix(PREFIX) for name in columns if name.startswith(PREFIX)]
    margin_of = Margins.of_each(records, wanted, over_seeds=True)
    for comparison in comparisons(records, [*_plain(columns), *([main] if main else [])], controls=True):
        of = {**asdict(comparison.setting), "layer": comparison.records[0].sae.site.layer}
        front = on_front(comparison, main) if main else {}
        with_l0 = {record.sae.target_l0 for record in comparison.records}
        for label, points in comparison.points("l0").items():
            about = of | {"architecture": label, "control": label in controls_of(comparison)}
            for target, l0 in zip(points.targets, points.l0[0], strict=True):
                cells = {
                    name: margin_of[name.removeprefix(PREFIX)].cell(
                        comparison.setting, label, target, None, with_interval
                    )
                    if name.startswith(PREFIX)
                    else _mean(comparison, name, label, target)
                    for name in columns
                }
                missed = target in with_l0 and order.is_missed(float(l0), target)
                mark = order.mark(on_front=target in front.get(label, ()), missed=missed)
                found.append(tables.Line(about | {"target": target, "mark": mark}, cells))
    return sorted(
        found, key=lambda line: (line.of["control"], Setting(*_setting(line)), not line.of["mark"].startswith("*"))
    )


def _row(line: tables.Line) -> order.Row:
    """What seeds of it have in common; nobody knows the target of an SAE that others trained."""
    target = line.of["target"]
    return Setting(*_setting(line)), target, line.of["architecture"]


def _setting(line: tables.Line) -> tuple[Any, ...]:
    return tuple(line.of[name] for name in ("model", "site", "width"))


def _mean(comparison: Comparison, metric: str, label: str, target: float) -> str:
    points = comparison.points(metric).get(label)
    if points is None or target not in points.targets:
        return "undefined"
    return with_interval(estimate(points.value[:, points.targets.index(target)], comparison.design))


def _sortable(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), natural_order(value) if isinstance(value, str) else -1 if value is None else value


def _markdown(parts: Mapping[str, Sequence[Sequence[str]]], header: Sequence[str], facts: str) -> str:
    drawn = []
    for title, body in parts.items():
        drawn += [f"**{render.escape_markdown(title)}**"] if title else []
        drawn.append(render.text_table(header, body, "pipe", render.escape_markdown))
    return "\n\n".join([*drawn, render.escape_markdown(facts)]) + "\n"
