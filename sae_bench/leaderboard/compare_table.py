"""Comparisons at matched L0 as tables: terminal, Markdown, CSV and LaTeX. Pure functions of the comparisons."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from tabulate import tabulate

from sae_bench.errors import one_line
from sae_bench.leaderboard.bootstrap import MIN_DOCUMENTS, Estimate
from sae_bench.leaderboard.compare import Comparison, Standing, compare
from sae_bench.leaderboard.curves import AT_L0, pareto_front
from sae_bench.leaderboard.render import (
    ARROWS,
    LATEX_ARROWS,
    escape_csv,
    escape_latex,
    escape_markdown,
    latex_table,
    with_error,
)

Cell = tuple[str, bool]
"""Its text, and whether it is marked: not told apart from the best, where others are."""
Row = tuple[str, list[Cell]]
Escape = Callable[[str], str]

AREA = "area"
"""Column of the mean height of the curve over log L0."""

RULE = (
    "not told apart from the best, where others are (all pairs, L0s and the area of a table as one family, Bonferroni, "
    "5%; differences paired by document where they can be)"
)
"""What is marked."""


def long_comparison(
    comparisons: Sequence[Comparison], metrics: Sequence[str], l0s: Sequence[float] = AT_L0
) -> pd.DataFrame:
    """One row for each setting, metric, architecture and L0 (or the area), with its 95% interval."""
    rows: list[dict[str, Any]] = []
    for comparison in comparisons:
        for metric in metrics:
            for place, standing in _standings(comparison, metric, l0s):
                e = standing.estimate
                low, high = e.interval() if e else (None, None)
                rows.append(
                    {
                        **asdict(comparison.setting),
                        "metric": metric, "better": comparison.directions.get(metric) or "", "l0": place,
                        "architecture": standing.label, "value": e.value if e else None, "low": low, "high": high,
                        "best": standing.best, "seeds": len(comparison.seeds), "over_seeds": bool(e and e.over_seeds),
                        "documents": comparison.design.n_documents,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _standings(comparison: Comparison, metric: str, l0s: Sequence[float]) -> list[tuple[str, Standing]]:
    if not any(metric in architecture.metrics for architecture in comparison.architectures):
        return []
    standings = compare(comparison, metric, l0s).standings
    return [(AREA if l0 is None else f"{l0:g}", standing) for l0, of in standings.items() for standing in of]


def terminal(
    comparisons: Sequence[Comparison], metrics: Sequence[str], l0s: Sequence[float] = AT_L0, facts: str = ""
) -> str:
    """Plain text, what is not told apart from the best marked by an asterisk; `facts`: what the records say."""
    return _text(comparisons, metrics, l0s, "simple", one_line, lambda cell: f"{cell} *", "*", facts)


def markdown(
    comparisons: Sequence[Comparison], metrics: Sequence[str], l0s: Sequence[float] = AT_L0, facts: str = ""
) -> str:
    """Markdown, what is not told apart from the best in bold."""
    return _text(comparisons, metrics, l0s, "github", escape_markdown, lambda cell: f"**{cell}**", "Bold:", facts)


def _text(
    comparisons: Sequence[Comparison],
    metrics: Sequence[str],
    l0s: Sequence[float],
    style: str,
    escape: Escape,
    mark: Escape,
    key: str,
    facts: str,
) -> str:
    parts = []

    def add(title: str, header: Sequence[str], rows: Sequence[Row]) -> None:
        body = [[escape(label), *(mark(text) if best else text for text, best in cells)] for label, cells in rows]
        parts.extend([title, tabulate(body, [escape(name) for name in header], tablefmt=style, disable_numparse=True)])

    for comparison in comparisons:
        for metric in metrics:
            header, rows = grid(comparison, metric, l0s)
            if rows:
                add(heading(comparison, metric, escape), header, rows)
    for title, header, rows in summaries(comparisons, metrics, l0s):
        add(escape(title), header, rows)
    gone = "".join(
        f"\nMissing: {escape(line)}"
        for comparison in comparisons
        for f in comparison.architectures
        for line in f.missing
    )
    told = f"{key} {RULE}. {note(comparisons)}"
    return "\n\n".join([*parts, " ".join(filter(None, [told, escape(facts)])) + gone])


def latex(
    comparisons: Sequence[Comparison], metrics: Sequence[str], l0s: Sequence[float] = AT_L0, facts: str = ""
) -> str:
    """booktabs tables, one for each setting and metric; what is not told apart from the best in bold."""
    tables = []

    def add(caption: str, header: Sequence[str], rows: Sequence[Row]) -> None:
        body = [
            " & ".join(
                [escape_latex(label)]
                + [rf"\textbf{{{_in_latex(text)}}}" if best else _in_latex(text) for text, best in cells]
            )
            + r" \\"
            for label, cells in rows
        ]
        head = " & ".join(map(escape_latex, header)) + r" \\"
        tables.append(latex_table("l" + "r" * (len(header) - 1), head, body, caption, caption_first=True))

    for comparison in comparisons:
        for metric in metrics:
            header, rows = grid(comparison, metric, l0s)
            if rows:
                arrow = LATEX_ARROWS[comparison.directions.get(metric)]
                setting = escape_latex(f"{comparison.setting}. {note([comparison])} {facts}".strip())
                key = escape_latex(f"Bold: {RULE}.")
                add(f"{escape_latex(metric)}{arrow} at matched L0. {setting} {key}", header, rows)
    for title, header, rows in summaries(comparisons, metrics, l0s):
        add(escape_latex(f"{title} {facts}".strip()), header, rows)
    return "\n".join(tables)


def _in_latex(text: str) -> str:
    return text.replace("±", r"$\pm$")


def csv(comparisons: Sequence[Comparison], metrics: Sequence[str], l0s: Sequence[float] = AT_L0) -> str:
    """The long table; to nine digits, for the last ones depend on which processor added up."""
    out = io.StringIO()
    table = long_comparison(comparisons, metrics, l0s)
    table.map(lambda cell: escape_csv(cell) if isinstance(cell, str) else cell).to_csv(
        out, index=False, lineterminator="\n", float_format="%.9g"
    )
    return out.getvalue()


def grid(comparison: Comparison, metric: str, l0s: Sequence[float]) -> tuple[list[str], list[Row]]:
    """Header and rows of one comparison: architectures, and at each L0 the value and whether it is marked."""
    found = _standings(comparison, metric, l0s)
    places = [place for place in dict.fromkeys(place for place, _ in found)
              if any(s.estimate for at_place, s in found if at_place == place)]  # fmt: skip
    cells = {(place, standing.label): (_cell(standing), standing.best) for place, standing in found}
    labels = list(dict.fromkeys(standing.label for _, standing in found))
    header = ["architecture", *(place if place == AREA else f"L0 {place}" for place in places)]
    if not places:
        return header, []
    front = on_front(comparison, metric)
    if front:
        header.append("Pareto front")
    rows = []
    for label in labels:
        row = [cells[place, label] for place in places]
        if front:
            row.append((", ".join(f"{target:g}" for target in front[label]) or "-", False))
        rows.append((label, row))
    return header, rows


def on_front(comparison: Comparison, metric: str) -> dict[str, list[float]]:
    """For each architecture the targets that are on the Pareto front of all; empty without a better direction."""
    direction = comparison.directions.get(metric)
    if direction is None:
        return {}
    points = [
        (architecture.label, target, float(l0), float(value))
        for architecture in comparison.architectures
        if (of := architecture.metrics.get(metric)) is not None
        for target, l0, value in zip(of.targets, of.l0[0], of.value[0], strict=True)
    ]
    front = pareto_front([point[2] for point in points], [point[3] for point in points], up=direction == "up")
    found: dict[str, list[float]] = {architecture.label: [] for architecture in comparison.architectures}
    for i in front:
        found[points[i][0]].append(points[i][1])
    return {label: sorted(targets) for label, targets in found.items()}


def summaries(
    comparisons: Sequence[Comparison], metrics: Sequence[str], l0s: Sequence[float]
) -> Iterator[tuple[str, list[str], list[Row]]]:
    """For boards of several sites, layers or models: at how many L0s each architecture is marked.

    L0s are counted and nothing is averaged: a nat at one layer is not a nat at another.
    """
    if len(comparisons) < 2:
        return
    labels = sorted({architecture.label for comparison in comparisons for architecture in comparison.architectures})
    for metric in metrics:
        columns = [_place(comparison, comparisons) for comparison in comparisons]
        wins: dict[str, list[Cell]] = {label: [] for label in labels}
        total: dict[str, list[int]] = {label: [0, 0] for label in labels}
        for comparison in comparisons:
            compared = _compared(_standings(comparison, metric, l0s))
            for label in labels:
                mine = [standing for standing in compared if standing.label == label]
                won = sum(standing.best for standing in mine)
                total[label] = [total[label][0] + won, total[label][1] + len(mine)]
                wins[label].append((f"{won} of {len(mine)}" if mine else "-", False))
        if any(of for _, of in total.values()):
            rows = [(label, [*wins[label], (f"{won} of {of}", False)]) for label, (won, of) in total.items()]
            title = f"{metric}: at how many L0s best or not told apart from the best, where others are."
            yield title, ["architecture", *columns, "all"], rows


def _compared(found: Sequence[tuple[str, Standing]]) -> list[Standing]:
    """Standings at the L0s where there is anybody to compare with."""
    known = [(place, standing) for place, standing in found if place != AREA and standing.estimate is not None]
    return [standing for place, standing in known if sum(other == place for other, _ in known) > 1]


def _place(comparison: Comparison, comparisons: Sequence[Comparison]) -> str:
    """What tells a setting from the others of the board."""
    setting = comparison.setting
    parts = {"model": setting.model, "site": setting.site, "width": f"width {setting.width}"}
    told = [text for name, text in parts.items() if len({getattr(p.setting, name) for p in comparisons}) > 1]
    return one_line(", ".join(told))


def _cell(standing: Standing) -> str:
    return "-" if standing.estimate is None else with_interval(standing.estimate)


def with_interval(e: Estimate) -> str:
    """A value and half of its 95% interval."""
    half = e.interval()[1] - e.value
    return with_error(e.value, half) if math.isfinite(half) else f"{e.value:.4g} ± unknown"


def heading(comparison: Comparison, metric: str, escape: Escape) -> str:
    """The title of one comparison."""
    arrow = ARROWS[comparison.directions.get(metric)]
    return f"{escape(metric)} {arrow} at matched L0: {escape(f'{comparison.setting}.')}".replace("  ", " ")


def note(comparisons: Sequence[Comparison]) -> str:
    """What ± is, how many seeds and documents it covers, and what it does not cover."""
    n_seeds = sorted({len(comparison.seeds) for comparison in comparisons})
    seeds = (
        "one seed, so variance between seeds is unknown" if n_seeds == [1] else f"{', '.join(map(str, n_seeds))} seeds"
    )
    n_documents = sorted({comparison.design.n_documents for comparison in comparisons})
    documents = f"{', '.join(map(str, n_documents))} document{'s' * (n_documents != [1])}"
    if n_documents and n_documents[0] < MIN_DOCUMENTS:
        documents += f", too few for an interval (from {MIN_DOCUMENTS} on): raise --eval-tokens"
    return (
        f"± is half of the 95% interval; {seeds}; {documents}. The choice of training data is not in it. It is "
        "that of a value alone: differences have their own."
    )
