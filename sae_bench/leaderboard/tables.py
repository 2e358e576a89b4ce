"""The leaderboard: a pure function of records. No torch, no plugin: records say what their metrics mean.

One row per SAE, sorted by model, site, width, architecture and measured L0; one column per headline metric, each value
with its standard error, an arrow for the better direction, and below the table what was counted.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sae_bench.errors import one_line
from sae_bench.leaderboard import render
from sae_bench.leaderboard.bootstrap import MIN_DOCUMENTS
from sae_bench.leaderboard.load import differences, metrics_of
from sae_bench.records.files import write_text
from sae_bench.records.schema import Record, SAEDescription, Score

KEYS = ("model", "site", "width", "architecture", "target", "seed", "run", "origin")
"""What a row may show of its SAE."""


def long_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per (SAE, metric), with everything the record says of the value: the CSV, and why there may be none."""
    rows = []
    records = list(records)
    imported = any(record.sae.origin for record in records)
    for record in records:
        sae = record.sae
        common = {
            "model": record.provenance.model,
            "site": sae.site.name,
            "layer": sae.site.layer,
            "width": sae.d_sae,
            "architecture": sae.label,
            "target": sae.target,
            "seed": sae.seed,
            "run": record.provenance.config_hash[:8],
            "sae": sae.id,
            **({"origin": sae.origin.source if sae.origin else "this run"} if imported else {}),
            "task": record.task,
            "task_version": record.task_version,
        }
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


@dataclass(frozen=True)
class Line:
    """One row: what it is of, and its cells by metric. Nothing has made its text harmless yet."""

    of: dict[str, Any]
    cells: dict[str, str]

    def name(self, key: str) -> str:
        """What it is of, as text; nobody knows the seed or the target of an SAE that others trained."""
        value = self.of.get(key)
        if pd.isna(value):
            return "unknown"
        return {"target": "{:g}", "seed": "{:.0f}", "layer": "{:.0f}"}.get(key, "{}").format(value)

    def row(self, keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
        return [*map(self.name, keys), *(self.cells[metric] for metric in metrics)]


def lines(records: Sequence[Record], metrics: Sequence[str]) -> list[Line]:
    """A row for each SAE, in the board's order."""
    table = long_table(records)
    cells = {(row.run, row.sae, row.metric): row for row in table.itertuples()}
    saes = table.drop_duplicates(["run", "sae"]).copy()
    saes["l0"] = [_number(cells.get((sae.run, sae.sae, "l0"))) for sae in saes.itertuples()]
    saes = saes.sort_values(["model", "site", "width", "architecture", "l0", "target", "seed", "run"])
    return [
        Line(
            {str(key): value for key, value in sae.items()},
            {metric: cell(cells.get((sae["run"], sae["sae"], metric))) for metric in metrics},
        )
        for sae in saes.to_dict("records")
    ]


def headline(records: Iterable[Record]) -> list[str]:
    """The metrics that are shown unasked; L0, the x-axis of every comparison, comes first."""
    names = [name for name, metric in metrics_of(records).items() if metric.headline]
    return sorted(names, key=lambda name: name != "l0")


def told_apart(rows: Sequence[Line]) -> list[str]:
    """What is shown of SAEs: architecture and target, and whatever not all of them have alike."""
    several = {"architecture", "target"} | {
        key for key in KEYS if len({row.name(key) for row in rows} - {"unknown"}) > 1
    }
    return [key for key in KEYS if key in several or (key == "origin" and any(key in row.of for row in rows))]


def header(records: Iterable[Record], keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """The columns' names; an arrow shows which way is better."""
    known = metrics_of(records)
    return [*keys, *(name + render.ARROWS[known[name].better] for name in metrics)]


def board(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the headline table, as text that nothing has made harmless yet."""
    metrics = headline(records)
    rows = lines(records, metrics)
    keys = told_apart(rows)
    return header(records, keys, metrics), [row.row(keys, metrics) for row in rows]


ERROR = "± is one standard error, clustered by document."


def caption(records: Sequence[Record], error: str = "") -> str:
    """What the table was made from, in one sentence per fact; `error` says what ± is."""
    made = [record.provenance for record in records]
    own = [record.sae for record in records if not record.sae.origin]
    n_imported = len({record.sae.id for record in records if record.sae.origin})
    on_tokens = [record for record in records if record.measured_on == "tokens"]
    trained = _distinct(sae.training.tokens_seen for sae in own)
    overlaps = _distinct(sae.training.eval_overlap for sae in own)
    seeds = _distinct(sae.seed for sae in own)
    counts = _distinct(score.n for record in on_tokens for score in record.scores.values())
    documents = _distinct(record.provenance.eval_documents for record in on_tokens)
    datasets = _listed(one.dataset for one in made)
    parts = [
        f"Model {_listed(one.model for one in made)}; site {_listed(record.sae.site.name for record in records)}; "
        f"width {_listed(record.sae.d_sae for record in records)}.",
        f"Trained on {_range(trained)} activations of {datasets} (preset {_listed(one.preset for one in made)});"
        if trained
        else f"Dataset {datasets};",
        f"evaluated on {_range(counts)} held-out tokens of {_range(documents)} documents, fingerprint "
        f"{_listed(one.eval_fingerprint[:12] for one in made)}.",
    ]
    if overlaps:
        parts.append(f"{_range(overlaps, '.1%')} of them lie in a run of 13 tokens that the training text has too.")
    if documents and documents[0] < MIN_DOCUMENTS:
        parts.append(few_documents(documents[0]))
    if n_imported:
        parts.append(f"{n_imported} from elsewhere, trained as their origin says.")
    between_seeds = "; variance between seeds is unknown." if len(seeds) == 1 else "."
    versions = _listed(f"{record.task} {record.task_version}" for record in records)
    parts += [
        f"Seeds {_listed(seeds) or 'unknown'}{between_seeds} {error}".rstrip(),
        f"Versions: {versions}; sae-arch-bench {made[0].versions['sae-arch-bench']}.",
        *dict.fromkeys(record.caption for record in records if record.caption),
    ]
    if said := control(records):
        parts.insert(0, f"{said}.")
    if mixed := differences(records):
        parts.insert(0, f"MIXED: these rows were made with different {' and '.join(mixed)}; do not compare them.")
    return " ".join(parts)


def few_documents(n_documents: int) -> str:
    """What to know of errors from too few documents."""
    return (
        f"Errors from {n_documents} documents are too small: at least {MIN_DOCUMENTS} are needed for them to cover "
        "what they say; raise --eval-tokens."
    )


def remarks(records: Iterable[Record]) -> list[str]:
    """One line for everything that a record, or the origin of an SAE, asks its reader to know."""
    records = list(records)
    of_records = [f"{record.sae.id}: {record.task}: {remark}" for record in records for remark in record.remarks]
    saes = {record.sae.id: record.sae for record in records if record.sae.origin}.values()
    return [one_line(line) for line in (*(line for sae in saes for line in _of_origin(sae)), *of_records)]


def _of_origin(sae: SAEDescription) -> Iterator[str]:
    if sae.origin and sae.origin.site_from:
        yield f"{sae.id}: measured at {sae.site.path}, by {sae.origin.site_from}"
    yield from (f"{sae.id}: {note}" for note in (sae.origin.notes if sae.origin else ()))


def control(records: Iterable[Record]) -> str:
    """What stands above a table of SAEs of a model with random weights; nothing where there is none."""
    models = sorted({record.provenance.model for record in records if record.provenance.config.get("random_lm")})
    return f"CONTROL: {', '.join(models)}, not the trained one" if models else ""


def markdown(records: Sequence[Record]) -> str:
    """The board as a Markdown document."""
    names, rows = board(records)
    table = render.text_table(names, rows, "pipe", render.escape_markdown, _alignment(names))
    notes = render.escape_markdown(caption(records, ERROR))
    lists = ""
    for title, lines in (("Failed", failed(records)), ("To know", remarks(records))):
        items = "".join(f"- {render.escape_markdown(line)}\n" for line in lines)
        lists += f"\n{title}:\n\n{items}" if items else ""
    title = " - ".join(filter(None, ["Leaderboard", render.escape_markdown(control(records))]))
    return f"# {title}\n\n{table}\n\n{notes}\n{lists}"


def terminal(records: Sequence[Record]) -> str:
    """The board as plain text."""
    names, rows = board(records)
    table = render.text_table(names, rows, "simple", one_line, _alignment(names))
    failures = "".join(f"FAILED {line}\n" for line in failed(records))
    known = "".join(f"{line}\n" for line in remarks(records))
    above = f"{one_line(control(records))}\n\n".lstrip()
    return f"{above}{table}\n\n{one_line(caption(records, ERROR))}\n{failures}{known}"


def latex(records: Sequence[Record]) -> str:
    """The board as a LaTeX table; needs the package booktabs."""
    names, rows = board(records)
    alignment = _alignment(names)
    _, _, head, _, *body, _, _ = render.text_table(
        names, rows, "latex_raw", render.escape_latex, alignment
    ).splitlines()
    columns = "".join(side[0] for side in alignment)
    return render.latex_table(columns, head, body, render.escape_latex(caption(records, ERROR)))


def csv(records: Iterable[Record]) -> str:
    """Every metric, headline or not, with all that its record says of it."""
    return render.csv_table(long_table(records).drop(columns=["layer", "not_measured"]))


def failed(records: Iterable[Record]) -> list[str]:
    """One line for every record of a failure."""
    return [one_line(f"{record.sae.id}: {record.task}: {record.failure}") for record in records if record.failure]


def write_board(folder: Path, records: Sequence[Record]) -> None:
    """Write leaderboard.md, .csv and .tex."""
    for name, content in board_files(records).items():
        write_text(folder / name, content)


def board_files(records: Sequence[Record]) -> dict[str, str]:
    """What the board's files say, by their names."""
    return {"leaderboard.md": markdown(records), "leaderboard.csv": csv(records), "leaderboard.tex": latex(records)}


def cell(row: Any) -> str:
    """A value and its error, or why there is none."""
    if row is None:
        return "not measured"
    if _number(row) is None:
        return row.not_measured if isinstance(row.not_measured, str) else "failed" if row.n == 0 else "undefined"
    return render.with_error(row.value, None if pd.isna(row.stderr) else row.stderr)


def _number(row: Any) -> float | None:
    return None if row is None or pd.isna(row.value) else float(row.value)


def _alignment(header: Sequence[str]) -> list[str]:
    return ["left" if name in ("model", "site", "architecture", "origin") else "right" for name in header]


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Those that are known, sorted, each once."""
    return sorted({value for value in values if value is not None})


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, _distinct(values)))


def _range(numbers: Sequence[float], form: str = ",") -> str:
    """From the first to the last of sorted numbers."""
    return " to ".join(format(number, form) for number in dict.fromkeys([*numbers[:1], *numbers[-1:]])) or "no"
