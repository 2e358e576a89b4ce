"""The leaderboard: a pure function of records. No torch, no plugin: records say what their metrics mean.

One row per SAE, sorted by model, site and width; there the Pareto front comes first, marked, then the others by
architecture and measured L0, and controls last, in a group of their own. One column per headline metric that has a
value, each with its standard error, an arrow for the better direction, and below the table what was counted. Where
there are controls, the primary metric has its margin over the best of them beside it. What missed its L0 is marked.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_bench.leaderboard import captions, order, render
from sae_bench.leaderboard.bootstrap import Estimate
from sae_bench.leaderboard.latex_tables import latex_tables
from sae_bench.leaderboard.load import metrics_of, with_value_or_failure
from sae_bench.leaderboard.margins import PREFIX, Margin, Margins
from sae_bench.leaderboard.render import CONTROLS
from sae_bench.leaderboard.setting import Setting
from sae_bench.records.names import natural_order
from sae_bench.records.ownership import write_drawn
from sae_bench.records.schema import Record, Score

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("model", "site", "width", "architecture", "target", "seed", "mark", "run", "origin")
"""What a row may show of its SAE."""

OF_SETTING = ("model", "site", "width")
"""What has tables of its own where lines are only so wide."""


def long_table(records: Iterable[Record]) -> "pd.DataFrame":
    """One row per (SAE, metric), with everything the record says of the value: the CSV, and why there may be none."""
    import pandas as pd

    rows = []
    records = list(records)
    imported, with_controls = (any(of) for of in ([r.sae.origin for r in records], [r.sae.control for r in records]))
    for record in records:
        common = _about(record, imported=imported) | {"task": record.task, "task_version": record.task_version}
        if not with_controls:
            del common["control"]
        nothing = Score(None, None, 0, note=record.failure)
        for name, metric in record.metrics.items():
            score = record.scores.get(name, nothing)
            rows.append(
                common
                | {"metric": name, "value": score.value, "stderr": score.stderr, "n": score.n, "note": score.note}
                | {"better": metric.better, "unit": metric.unit, "headline": metric.headline}
                | {"not_measured": record.not_measured}
            )
    return pd.DataFrame(rows)


def _about(record: Record, *, imported: bool) -> dict[str, Any]:
    """What a row says of its SAE; where some were imported, where it is from."""
    sae = record.sae
    run, name = order.place_of(record)
    return {
        "model": record.provenance.model, "site": sae.site.name, "layer": sae.site.layer, "width": sae.d_sae,
        "architecture": sae.label, "control": sae.control, "target": sae.target, "seed": sae.seed,
        "run": run, "sae": name,
        **({"origin": sae.origin.source if sae.origin else "this run"} if imported else {}),
    }  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One row: what it is of, and its cells by metric. Nothing has made its text harmless yet."""

    of: dict[str, Any]
    cells: dict[str, str]

    def name(self, key: str) -> str:
        """What it is of, as text; nobody knows the seed or the target of an SAE that others trained."""
        value = self.of.get(key)
        if value is None:
            return "unknown"
        return {"target": "{:g}", "seed": "{:.0f}", "layer": "{:.0f}"}.get(key, "{}").format(value)

    def row(self, keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
        return [*map(self.name, keys), *(self.cells[metric] for metric in metrics)]


def lines(records: Sequence[Record], metrics: Sequence[str]) -> list[Line]:
    """A row for each SAE, in the board's order."""
    imported = any(record.sae.origin for record in records)
    saes: dict[order.Place, dict[str, Any]] = {}
    with_metric: dict[order.Place, dict[str, Record]] = {}
    for record in records:
        if record.metrics:
            place = order.place_of(record)
            saes.setdefault(place, _about(record, imported=imported))
            with_metric.setdefault(place, {}).update(dict.fromkeys(record.metrics, record))
    found, missed = order.front(records), order.missed(records)
    for place, of in saes.items():
        score = with_metric[place]["l0"].scores.get("l0") if "l0" in with_metric[place] else None
        of["l0"] = None if score is None else score.value
        of["mark"] = order.mark(on_front=place in found, missed=place in missed)
    margin_of = Margins.of_each(records, [name.removeprefix(PREFIX) for name in metrics if name.startswith(PREFIX)])

    def text(place: order.Place, name: str) -> str:
        if name.startswith(PREFIX):
            return margin_of[name.removeprefix(PREFIX)].cell(*_key(saes[place]), _one_stderr)
        return cell(with_metric[place].get(name), name)

    places = sorted(saes, key=lambda place: _in_order(saes[place]))
    return [Line(saes[place], {name: text(place, name) for name in metrics}) for place in places]


def _in_order(of: Mapping[str, Any]) -> tuple[Any, ...]:
    """Controls last, the front first; what is not known, behind what is."""
    behind = "" if of["mark"].startswith("*") else of["architecture"]
    numbers = ((of[name] is None, of[name] or 0) for name in ("l0", "target", "seed"))
    names = (natural_order(of["model"]), natural_order(of["site"]))
    return of["control"], *names, of["width"], behind, *numbers, of["run"]


def _key(of: Mapping[str, Any]) -> tuple[Setting, str, float, int | None]:
    """What the margin of a row's SAE is found by."""
    return Setting(of["model"], of["site"], of["width"]), of["architecture"], of["target"], of["seed"]


def _one_stderr(e: Estimate) -> str:
    return render.with_error(e.value, e.stderr)


def headline(records: Sequence[Record]) -> list[str]:
    """The metrics that are shown unasked; L0, the x-axis of every comparison, comes first, then truth if known.

    Those of which no SAE has a value, and none failed, are left out; captions say so.
    """
    there = with_value_or_failure(records)
    names = [name for name, metric in metrics_of(records).items() if metric.headline and name in there]
    main = order.primary(records)
    truth = {name for record in records if main == order.OF_TRUTH and main in record.metrics for name in record.metrics}
    names.sort(key=lambda name: (name != "l0", name not in truth))
    if main in names and any(record.sae.control for record in records):
        names.insert(names.index(main) + 1, f"{PREFIX}{main}")
    return names


def foremost(records: Sequence[Record], metrics: Sequence[str]) -> list[str]:
    """The metrics in the order in which a narrow table leaves them out last: the primary one, then one of each task.

    The task that L0 is of comes first.
    """
    main = order.primary(records)
    of_task: dict[str, list[str]] = {}
    for record in records:
        of_task.setdefault(record.task, []).extend(name for name in record.metrics if name in metrics)
    of_task = dict(sorted(of_task.items(), key=lambda task: "l0" not in task[1]))
    ranks = {
        name: (i, task)
        for task, names in enumerate(of_task.values())
        for i, name in enumerate(name for name in dict.fromkeys(names) if name != "l0")
    }
    ranks |= {main: (-2, 0), f"{PREFIX}{main}": (-1, 0)} if main else {}
    return sorted((name for name in metrics if name in ranks), key=ranks.__getitem__)


def told_apart(rows: Sequence[Line]) -> list[str]:
    """What is shown of SAEs: architecture and target, and whatever not all of them have alike."""
    several = {"architecture", "target"} | {
        key for key in KEYS if len({row.name(key) for row in rows} - {"unknown"}) > 1
    }
    several |= {"mark"} if any(row.of["mark"] for row in rows) else set()
    return [key for key in KEYS if key in several or (key == "origin" and any(key in row.of for row in rows))]


def header(records: Iterable[Record], keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """The columns' names; an arrow shows which way is better."""
    known = metrics_of(records)
    better = {name: "up" if name.startswith(PREFIX) else known[name].better for name in metrics}
    return [*keys, *(name + render.ARROWS[better[name]] for name in metrics)]


def body(rows: Sequence[Line], keys: Sequence[str], metrics: Sequence[str]) -> list[list[str]]:
    """The rows' cells, with a line above the controls, which come last."""
    found = [row.row(keys, metrics) for row in rows]
    n_others = sum(not row.of["control"] for row in rows)
    above = [[CONTROLS, *[""] * (len(found[0]) - 1)]] if 0 < n_others < len(rows) else []
    return [*found[:n_others], *above, *found[n_others:]]


def board(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the headline table, as text that nothing has made harmless yet."""
    metrics = headline(records)
    rows = lines(records, metrics)
    keys = told_apart(rows)
    return header(records, keys, metrics), body(rows, keys, metrics)


def markdown(records: Sequence[Record]) -> str:
    """The board as a Markdown document."""
    names, rows = board(records)
    table = render.text_table(names, rows, "pipe", render.escape_markdown, render.alignment(names))
    notes = render.escape_markdown(captions.caption(records, captions.of_rows(records)))
    lists = ""
    for title, lines in (("Failed", captions.failed(records)), ("To know", captions.remarks(records))):
        items = "".join(f"- {render.escape_markdown(line)}\n" for line in lines)
        lists += f"\n{title}:\n\n{items}" if items else ""
    title = " - ".join(filter(None, ["Leaderboard", render.escape_markdown(captions.control(records))]))
    return f"# {title}\n\n{table}\n\n{notes}\n{lists}"


def in_groups(rows: Sequence[Line], keys: Sequence[str]) -> dict[str, list[Line]]:
    """The rows by what they have alike in these keys, said as a title."""
    found: dict[str, list[Line]] = {}
    for row in rows:
        found.setdefault(", ".join(f"{key} {row.name(key)}" for key in keys), []).append(row)
    return found


def n_in_every_table(fixed: Sequence[str], metrics: Sequence[str]) -> int:
    """How many columns stand in every table where columns go into several: what rows are of, and L0."""
    return len(fixed) + (metrics[:1] == ["l0"])


def latex(records: Sequence[Record]) -> str:
    """The board as LaTeX tables; they need the packages booktabs and graphicx."""
    metrics = headline(records)
    rows = lines(records, metrics)
    keys = told_apart(rows)
    groups, fixed = ([key for key in keys if (key in OF_SETTING) == of] for of in (True, False))
    parts = {title: body(of, fixed, metrics) for title, of in in_groups(rows, groups).items()}
    error = captions.of_rows(records)
    caption, facts = captions.caption(records, error, paper=True), captions.caption(records, error)
    n_keys = n_in_every_table(fixed, metrics)
    return latex_tables(parts, header(records, fixed, metrics), n_keys, caption, "leaderboard", facts)


def csv(records: Iterable[Record]) -> str:
    """Every metric, headline or not, with all that its record says of it, and its margin where there are controls."""
    import pandas as pd

    records = list(records)
    table = long_table(records)
    if "control" in table:
        margin_of = Margins.of_each(records, [*table["metric"].unique()])
        rows = ((_key(_about(record, imported=False)), name) for record in records for name in record.metrics)
        columns = [_margin_columns(margin_of[name].get(*key)) for key, name in rows]
        table = pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1)
    return render.csv_table(table.drop(columns=["layer", "not_measured"]))


def _margin_columns(margin: Margin | None) -> dict[str, Any]:
    if margin is None:
        return {"margin": None, "margin_stderr": None, "margin_over": None}
    return {"margin": margin.estimate.value, "margin_stderr": margin.estimate.stderr, "margin_over": margin.over}


def write_board(folder: Path, records: Sequence[Record]) -> None:
    """Write leaderboard.md, .csv and .tex."""
    write_drawn(folder, {name: content.encode() for name, content in board_files(records).items()})


def board_files(records: Sequence[Record]) -> dict[str, str]:
    """What the board's files say, by their names."""
    return {"leaderboard.md": markdown(records), "leaderboard.csv": csv(records), "leaderboard.tex": latex(records)}


def cell(record: Record | None, metric: str) -> str:
    """A value and its error, or why there is none."""
    if record is None:
        return "not measured"
    score = record.scores.get(metric)
    if score is None or score.value is None:
        if record.not_measured is not None:
            return record.not_measured
        return "failed" if score is None or score.n == 0 else "undefined"
    return render.with_error(score.value, score.stderr)
