"""Comparisons at matched L0 as tables: terminal, Markdown, CSV and LaTeX. Pure functions of the comparisons."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, product
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from sae_bench.errors import one_line
from sae_bench.leaderboard import captions, render
from sae_bench.leaderboard.bootstrap import Estimate
from sae_bench.leaderboard.compare import Comparison, Standing, compare
from sae_bench.leaderboard.curves import pareto_front
from sae_bench.leaderboard.latex_tables import Bold, latex_tables
from sae_bench.leaderboard.margins import controls_of, over_best
from sae_bench.leaderboard.matched import AT_L0
from sae_bench.leaderboard.notes import note
from sae_bench.leaderboard.order import best
from sae_bench.leaderboard.render import CONTROLS
from sae_bench.leaderboard.setting import Setting
from sae_bench.leaderboard.text_tables import prose, text_tables

if TYPE_CHECKING:
    import pandas as pd

Cell = tuple[str, bool]
"""Its text, and whether it is marked: not told apart from the best, where others are."""
Row = tuple[str, list[Cell]]

Standings = Mapping[str, list[Standing]]  # of all architectures, by the L0 or the area as it is written

AREA = "area"
"""Column of the mean height of the curve over log L0."""

RULE = (
    "not told apart from the best, where others are (all pairs, L0s and the area of a table as one family, Bonferroni, "
    "5%; differences paired by document where they can be)"
)
"""What is marked."""


@dataclass(frozen=True)
class Table:
    """One table, as text that nothing has made harmless yet."""

    what: str
    of: Comparison | None
    """None: it is of all of them."""
    header: list[str]
    rows: list[Row]
    label: str
    """What papers refer to it by."""

    @property
    def title(self) -> str:
        return f"{self.what}: {self.of.setting}." if self.of else self.what


def shown(
    comparisons: Sequence[Comparison], metrics: Sequence[str], l0s: Sequence[float], top: int | None = None
) -> Iterator[Table]:
    """A table for each setting and metric, another of its margins over the best control if any, and the summaries."""
    found = {(of.setting, metric): _standings(of, metric, l0s) for of, metric in product(comparisons, metrics)}
    for comparison, metric in product(comparisons, metrics):
        header, rows = _grid(comparison, metric, found[comparison.setting, metric], top)
        if rows:
            arrow = render.ARROWS[comparison.directions.get(metric)]
            yield Table(f"{metric}{arrow} at matched L0", comparison, header, rows, f"{metric}-{comparison.setting}")
        header, of_margins = margin_grid(comparison, metric, l0s, [label for label, _ in rows])
        if of_margins:
            what = f"{metric}: margin over the best control ↑ at matched L0"
            yield Table(what, comparison, header, of_margins, f"{metric}-margin-{comparison.setting}")
    yield from summaries(comparisons, metrics, l0s, found)


def written(
    form: str,
    comparisons: Sequence[Comparison],
    metrics: Sequence[str],
    l0s: Sequence[float] = AT_L0,
    facts: str = "",
    top: int | None = None,
    wide: int | None = None,
) -> str:
    """All tables as text, md, tex (booktabs) or csv; `facts`: what the records say; `top`: of that many architectures.

    Text is at most `wide` letters wide, if that is given.

    What is not told apart from the best is in bold; in text it has an asterisk, in csv a column.
    """
    if form == "csv":
        # To nine digits, for the last ones depend on which processor added up.
        return render.csv_table(long_table(comparisons, metrics, l0s), float_format="%.9g")
    tables = list(shown(comparisons, metrics, l0s, top))
    if form == "tex":
        return "\n".join(_latex(table, l0s, facts) for table in tables)
    nothing = []
    if not tables:
        at = ", ".join(f"{l0:g}" for l0 in l0s)
        nothing.append(
            f"Nothing to compare: no architecture was measured on both sides of an L0 of {at}. Give another --at-l0, "
            "or train at more L0s: --l0 16 32."
        )
    missing = [line for comparison in comparisons for one in comparison.architectures for line in one.missing]
    if form == "text":
        drawn = [part for table in tables for part in (prose(table.title, wide), _text(table, wide))]
        told = prose(" ".join(filter(None, [f"* {RULE}. {note(comparisons, l0s)}", facts])), wide)
        return "\n\n".join([*drawn, *(prose(text, wide) for text in nothing), told]) + "".join(
            f"\nMissing: {one_line(line)}" for line in missing
        )
    parts = [part for table in tables for part in (render.escape_markdown(table.title), _markdown(table))]
    told = render.escape_markdown(" ".join(filter(None, [f"Bold: {RULE}. {note(comparisons, l0s)}", facts])))
    gone = "".join(f"\nMissing: {render.escape_markdown(line)}" for line in missing)
    return "\n\n".join([*parts, *nothing, told]) + gone


def _text(table: Table, wide: int | None) -> str:
    rows = [[label, *(f"* {text}" if best else text for text, best in cells)] for label, cells in table.rows]
    return text_tables({"": rows}, table.header, 1, wide, None)[0]


def _markdown(table: Table) -> str:
    escape = render.escape_markdown
    rows = [[escape(label), *(f"**{text}**" if best else text for text, best in cells)] for label, cells in table.rows]
    header = [escape(name) for name in table.header]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def _latex(table: Table, l0s: Sequence[float], facts: str) -> str:
    caption = table.what
    if table.of:
        told = f"{note([table.of], l0s)} Bold: {RULE}."
        caption = f"{table.what}. {captions.caption(table.of.records, told, paper=True)}"
    rows = [[name, *(Bold(text) if best else text for text, best in cells)] for name, cells in table.rows]
    return latex_tables({"": rows}, table.header, 1, caption, f"compare-{table.label}", facts)


def long_table(comparisons: Sequence[Comparison], metrics: Sequence[str], l0s: Sequence[float]) -> "pd.DataFrame":
    """One row for each setting, metric, architecture and L0 (or the area), with its 95% interval."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for comparison, metric in product(comparisons, metrics):
        standings, controls = _standings(comparison, metric, l0s), controls_of(comparison)
        for place, standing in ((place, one) for place, of in standings.items() for one in of):
            e = standing.estimate
            low, high = e.interval() if e else (None, None)
            rows.append(
                {
                    **asdict(comparison.setting),
                    "metric": metric, "better": comparison.directions.get(metric) or "", "l0": place,
                    "architecture": standing.label, **({"control": standing.label in controls} if controls else {}),
                    "value": e.value if e else None, "low": low, "high": high,
                    "best": standing.best, "seeds": len(comparison.seeds), "over_seeds": bool(e and e.over_seeds),
                    "documents": comparison.design.n_documents,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _standings(comparison: Comparison, metric: str, l0s: Sequence[float]) -> Standings:
    """All architectures' standings, by the L0 or the area as it is written."""
    found = compare(comparison, metric, l0s).standings if comparison.points(metric) else {}
    return {AREA if l0 is None else f"{l0:g}": of for l0, of in found.items()}


def _grid(
    comparison: Comparison, metric: str, standings: Standings, top: int | None = None
) -> tuple[list[str], list[Row]]:
    """Header and rows of one comparison: architectures, and at each L0 the value and whether it is marked.

    Those on the Pareto front come first, controls last; `top`: the so many that are best in the last column.
    """
    found = {place: of for place, of in standings.items() if any(one.estimate for one in of)}
    header = ["architecture", *(place if place == AREA else f"L0 {place}" for place in found)]
    rows: list[Row] = [
        (of[0].label, [(with_interval(one.estimate) if one.estimate else "-", one.best) for one in of])
        for of in zip(*found.values(), strict=True)
    ]
    controls, front = controls_of(comparison), on_front(comparison, metric) if rows else {}
    if front:
        header.append("Pareto front")
        for label, row in rows:
            row.append((", ".join(f"{target:g}" for target in front.get(label, ())) or "-", False))
    if top is not None and found:
        last = {one.label: [one.estimate.value] for one in [*found.values()][-1] if one.estimate}
        sign = -1 if comparison.directions.get(metric) == "down" else 1
        kept = best({label: of for label, of in last.items() if label not in controls}, sign, top)
        rows = [row for row in rows if row[0] in kept or row[0] in controls]
    rows.sort(key=lambda row: (row[0] in controls, not front.get(row[0])))
    n_others = sum(row[0] not in controls for row in rows)
    above: list[Row] = [(CONTROLS, [("", False)] * (len(header) - 1))] if 0 < n_others < len(rows) else []
    return header, [*rows[:n_others], *above, *rows[n_others:]]


def margin_grid(
    comparison: Comparison, metric: str, l0s: Sequence[float], labels: Sequence[str]
) -> tuple[list[str], list[Row]]:
    """Header and rows of the margins over the best control, which the last row names; none without controls."""
    controls = controls_of(comparison)
    heights = comparison.heights(metric, l0s) if controls else {}
    of_place = {
        f"L0 {l0:g}": found
        for l0, values in heights.items()
        if (found := over_best(values, controls, comparison.directions.get(metric), comparison.design))
    }
    shown = [label for label in labels if any(label in found for found in of_place.values())]
    rows: list[Row] = [
        (label, [(with_interval(of[label].estimate) if label in of else "-", False) for of in of_place.values()])
        for label in shown
    ]
    if rows:
        rows.append(("best control:", [(next(iter(of.values())).over, False) for of in of_place.values()]))
    return ["architecture", *of_place], rows


def on_front(comparison: Comparison, metric: str) -> dict[str, list[float]]:
    """For each architecture the targets that are on the Pareto front of all but controls; empty without a direction."""
    direction = comparison.directions.get(metric)
    if direction is None:
        return {}
    points = [
        (label, target, float(l0), float(value))
        for label, of in comparison.points(metric).items()
        if label not in controls_of(comparison)
        for target, l0, value in zip(of.targets, of.l0[0], of.value[0], strict=True)
    ]
    front = pareto_front([point[2] for point in points], [point[3] for point in points], up=direction == "up")
    found: dict[str, list[float]] = {label: [] for label, *_ in points}
    for i in front:
        found[points[i][0]].append(points[i][1])
    return {label: sorted(targets) for label, targets in found.items()}


def summaries(
    comparisons: Sequence[Comparison],
    metrics: Sequence[str],
    l0s: Sequence[float],
    known: Mapping[tuple[Setting, str], Standings] | None = None,
) -> Iterator[Table]:
    """For boards of several sites, layers or models: at how many L0s each architecture is marked.

    L0s are counted and nothing is averaged: a nat at one layer is not a nat at another.
    """
    if len(comparisons) < 2:
        return
    labels = sorted({architecture.label for comparison in comparisons for architecture in comparison.architectures})
    header = ["architecture", *(_place(comparison, comparisons) for comparison in comparisons), "all"]
    for metric in metrics:
        compared = [
            _compared(known[comparison.setting, metric] if known else _standings(comparison, metric, l0s))
            for comparison in comparisons
        ]
        if not any(compared):
            continue
        rows: list[Row] = []
        for label in labels:
            best = [[standing.best for standing in of if standing.label == label] for of in compared]
            cells = [f"{sum(of)} of {len(of)}" if of else "-" for of in best]
            every = list(chain(*best))
            rows.append((label, [(cell, False) for cell in (*cells, f"{sum(every)} of {len(every)}")]))
        what = f"{metric}: at how many L0s best or not told apart from the best, where others are."
        yield Table(what, None, header, rows, f"{metric}-summary")


def _compared(found: Mapping[str, Sequence[Standing]]) -> list[Standing]:
    """Standings at the L0s where there is anybody to compare with."""
    known = ([one for one in of if one.estimate] for place, of in found.items() if place != AREA)
    return [one for of in known if len(of) > 1 for one in of]


def _place(comparison: Comparison, comparisons: Sequence[Comparison]) -> str:
    """What tells a setting from the others of the board."""
    setting = comparison.setting
    parts = {"model": setting.model, "site": setting.site, "width": f"width {setting.width}"}
    told = [text for name, text in parts.items() if len({getattr(p.setting, name) for p in comparisons}) > 1]
    return one_line(", ".join(told))


def with_interval(e: Estimate) -> str:
    """A value and half of its 95% interval."""
    half = e.interval()[1] - e.value
    return render.with_error(e.value, half)
