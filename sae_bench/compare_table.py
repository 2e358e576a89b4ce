"""Comparisons at matched L0 as tables: terminal, Markdown, CSV and LaTeX. Pure functions of the panels."""

import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from sae_bench.compare import Panel, Standing, at, by_area
from sae_bench.curves import AT_L0
from sae_bench.leaderboard import ARROWS, LATEX_ARROWS, escape_latex, escape_markdown

AREA = "area"
"""Column of the mean height of the curve over log L0."""


def long_comparison(panels: Sequence[Panel], metrics: Sequence[str], l0s: Sequence[float] = AT_L0) -> pd.DataFrame:
    """One row for each setting, metric, architecture and L0 (or the area), with its 95% interval."""
    rows: list[dict[str, Any]] = []
    for panel in panels:
        for metric in metrics:
            for place, standing in _standings(panel, metric, l0s):
                e = standing.estimate
                low, high = e.interval() if e else (None, None)
                rows.append(
                    {
                        "model": panel.setting.model, "site": panel.setting.site, "width": panel.setting.width,
                        "metric": metric, "better": panel.directions.get(metric) or "", "l0": place,
                        "architecture": standing.label, "value": e.value if e else None, "low": low, "high": high,
                        "best": standing.best, "seeds": len(panel.seeds), "over_seeds": bool(e and e.over_seeds),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _standings(panel: Panel, metric: str, l0s: Sequence[float]) -> list[tuple[str, Standing]]:
    if not any(metric in family.metrics for family in panel.families):
        return []
    standings, _ = at(panel, metric, l0s)
    found = [(f"{l0:g}", standing) for l0, of in standings.items() for standing in of]
    return found + [(AREA, standing) for standing in by_area(panel, metric)[1]]


def terminal(panels: Sequence[Panel], metrics: Sequence[str], l0s: Sequence[float] = AT_L0) -> str:
    """Plain text, the best and whatever is tied with it marked by an asterisk."""
    return _text(panels, metrics, l0s, "simple", str, lambda cell: f"{cell} *", "* the best, or tied with it")


def markdown(panels: Sequence[Panel], metrics: Sequence[str], l0s: Sequence[float] = AT_L0) -> str:
    """Markdown, the best and whatever is tied with it in bold."""
    return _text(panels, metrics, l0s, "github", escape_markdown, lambda cell: f"**{cell}**", "Bold: best, or tied")


def _text(
    panels: Sequence[Panel], metrics: Sequence[str], l0s: Sequence[float], style: str, escape: Any, mark: Any, key: str
) -> str:
    parts = []
    for panel in panels:
        for metric in metrics:
            header, rows = _grid(panel, metric, l0s, escape, mark, " ± ")
            if rows:
                arrow = ARROWS[panel.directions.get(metric)]
                parts.append(f"{escape(metric)} {arrow} at matched L0: {escape(_setting(panel))}".replace("  ", " "))
                parts.append(tabulate(rows, header, tablefmt=style, disable_numparse=True))
    return "\n\n".join([*parts, f"{key} (differences paired by document, Holm-corrected, 5%). {_note(panels)}"])


def latex(panels: Sequence[Panel], metrics: Sequence[str], l0s: Sequence[float] = AT_L0) -> str:
    """booktabs tables, one for each setting and metric; the best in bold, and all that are tied with it."""
    tables = []
    for panel in panels:
        for metric in metrics:
            header, rows = _grid(panel, metric, l0s, escape_latex, lambda cell: rf"\textbf{{{cell}}}", r" $\pm$ ")
            if not rows:
                continue
            arrow = LATEX_ARROWS[panel.directions.get(metric)]
            caption = f"{escape_latex(metric)}{arrow} at matched L0. {escape_latex(_setting(panel))} {_note([panel])}"
            body = "\n".join(" & ".join(row) + r" \\" for row in rows)
            caption = caption.replace("±", r"$\pm$").replace("95%", r"95\%")
            tables.append(
                f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n"
                f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}\n\\toprule\n"
                f"{' & '.join(header)} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
            )
    return "\n".join(tables)


def csv(panels: Sequence[Panel], metrics: Sequence[str], l0s: Sequence[float] = AT_L0) -> str:
    """The long table."""
    out = io.StringIO()
    long_comparison(panels, metrics, l0s).to_csv(out, index=False, lineterminator="\n")
    return out.getvalue()


def _grid(
    panel: Panel, metric: str, l0s: Sequence[float], escape: Any, mark: Any, plus_minus: str
) -> tuple[list[str], list[list[str]]]:
    found = _standings(panel, metric, l0s)
    places = [place for place in dict.fromkeys(place for place, _ in found)
              if any(s.estimate for at_place, s in found if at_place == place)]  # fmt: skip
    cells = {(place, standing.label): _cell(standing, mark, plus_minus) for place, standing in found}
    labels = list(dict.fromkeys(standing.label for _, standing in found))
    header = ["architecture", *(place if place == AREA else f"L0 {place}" for place in places)]
    return header, [[escape(label), *(cells[place, label] for place in places)] for label in labels] if places else []


def _cell(standing: Standing, mark: Any, plus_minus: str) -> str:
    e = standing.estimate
    if e is None:
        return "-"
    half = e.interval()[1] - e.value
    text = f"{e.value:.4g}{plus_minus}{half:.2g}"
    return str(mark(text)) if standing.best else text


def _setting(panel: Panel) -> str:
    setting = panel.setting
    return f"{setting.model}, {setting.site}, width {setting.width}."


def _note(panels: Sequence[Panel]) -> str:
    n_seeds = sorted({len(panel.seeds) for panel in panels})
    seeds = (
        "one seed, so variance between seeds is unknown" if n_seeds == [1] else f"{', '.join(map(str, n_seeds))} seeds"
    )
    return f"± half of the 95% interval; {seeds}."
