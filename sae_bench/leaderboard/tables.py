"""The leaderboard: a pure function of records. No torch, no plugin: records say what their metrics mean.

One row per SAE, sorted by model, site, width, architecture and measured L0; one column per headline metric, each value
with its standard error, an arrow for the better direction, and below the table what was counted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from sae_bench.errors import one_line
from sae_bench.leaderboard.bootstrap import MIN_DOCUMENTS
from sae_bench.leaderboard.load import differences
from sae_bench.leaderboard.render import (
    ARROWS,
    LATEX_ARROWS,
    escape_csv,
    escape_latex,
    escape_markdown,
    latex_table,
    with_error,
)
from sae_bench.records.files import write_text
from sae_bench.records.schema import Record, SAEDescription, Score

KEYS = ["model", "site", "width", "architecture", "target", "seed", "run", "sae"]
TRAINED_HERE = "this run"


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
            "width": sae.d_sae,
            "architecture": sae.label,
            "target": sae.target,
            "seed": sae.seed,
            "run": record.provenance.config_hash[:8],
            "sae": sae.id,
            **({"origin": _origin(sae)} if imported else {}),
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


def _origin(sae: SAEDescription) -> str:
    """Where an SAE is from."""
    return sae.origin.source if sae.origin else TRAINED_HERE


def board(
    table: pd.DataFrame, escape: Callable[[str], str], *, latex: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the headline table, as text; `escape` makes text from records harmless."""
    shown = table[table["headline"]]
    metrics = list(dict.fromkeys(shown["metric"]))
    if "l0" in metrics:  # the x-axis of every comparison comes first
        metrics.insert(0, metrics.pop(metrics.index("l0")))
    cells = {(row.run, row.sae, row.metric): row for row in table.itertuples()}
    saes = _sorted_saes(table)
    origin = [name for name in ("origin",) if name in saes]
    fixed = [key for key in ("model", "site", "width") if saes[key].nunique() > 1] + ["architecture", "target"]
    fixed += [key for key in ("seed", "run") if saes[key].nunique() > 1] + origin
    arrows = LATEX_ARROWS if latex else {key: f" {arrow}".rstrip() for key, arrow in ARROWS.items()}
    better = {name: next(iter(found.dropna()), None) for name, found in shown.groupby("metric")["better"]}
    header = [escape(name) for name in fixed] + [escape(name) + arrows[better[name]] for name in metrics]
    rows = [
        [escape(_setting(key, getattr(sae, key))) for key in fixed]
        + [cell(cells.get((sae.run, sae.sae, metric)), latex=latex) for metric in metrics]
        for sae in saes.itertuples()
    ]
    return header, rows


def _setting(key: str, value: Any) -> str:
    """A cell that says what an SAE is; nobody knows the seed or the target of one that others trained."""
    if pd.isna(value):
        return "unknown"
    return {"target": "{:g}", "seed": "{:.0f}"}.get(key, "{}").format(value)


def _sorted_saes(table: pd.DataFrame) -> pd.DataFrame:
    l0 = {(row.run, row.sae): _number(row) for row in table[table["metric"] == "l0"].itertuples()}
    saes = table.drop_duplicates(["run", "sae"])[[*KEYS, *(name for name in ("origin",) if name in table)]].copy()
    saes["l0"] = [l0.get((sae.run, sae.sae)) for sae in saes.itertuples()]
    return saes.sort_values(["model", "site", "width", "architecture", "l0", "target", "seed", "run"])


def row_order(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Run and SAE of each of the board's rows."""
    return [(str(sae.run), str(sae.sae)) for sae in _sorted_saes(table).itertuples()]


ERROR = "± is one standard error, clustered by document."


def caption(records: Sequence[Record], error: str = "") -> str:
    """What the table was made from, in one sentence per fact; `error` says what ± is."""
    provenance = [record.provenance for record in records]
    fingerprints = sorted({made.eval_fingerprint[:12] for made in provenance})
    mixed = differences(records)
    models = sorted({made.model for made in provenance})
    sites = sorted({record.sae.site.name for record in records})
    widths = sorted({record.sae.d_sae for record in records})
    on_tokens = [record for record in records if record.measured_on == "tokens"]
    counts = sorted({score.n for record in on_tokens for score in record.scores.values()})
    own = [record.sae for record in records if not record.sae.origin]
    n_imported = len({record.sae.id for record in records if record.sae.origin})
    trained = sorted({sae.training.tokens_seen for sae in own if sae.training.tokens_seen is not None})
    documents = sorted({record.provenance.eval_documents for record in on_tokens})
    overlaps = sorted({sae.training.eval_overlap for sae in own if sae.training.eval_overlap is not None})
    datasets = sorted({made.dataset for made in provenance})
    presets = sorted({made.preset for made in provenance})
    seeds = sorted({sae.seed for sae in own if sae.seed is not None})
    versions = sorted({f"{record.task} {record.task_version}" for record in records})
    parts = [
        f"Model {', '.join(models)}; site {', '.join(sites)}; width {', '.join(map(str, widths))}.",
        f"Trained on {_range(trained)} activations of {', '.join(datasets)} (preset {', '.join(presets)});"
        if trained
        else f"Dataset {', '.join(datasets)};",
        f"evaluated on {_range(counts)} held-out tokens of {_range(documents)} documents, fingerprint "
        f"{', '.join(fingerprints)}.",
        *(
            [f"{_shares(overlaps)} of them lie in a run of 13 tokens that the training text has too."]
            if overlaps
            else []
        ),
        *([few_documents(documents[0])] if documents and documents[0] < MIN_DOCUMENTS else []),
        *([f"{n_imported} from elsewhere, trained as their origin says."] if n_imported else []),
        f"Seeds {', '.join(map(str, seeds)) or 'unknown'}"
        + ("; variance between seeds is unknown." if len(seeds) == 1 else ".")
        + f" {error}".rstrip(),
        f"Versions: {', '.join(versions)}; sae-arch-bench {provenance[0].versions['sae-arch-bench']}.",
    ]
    parts += dict.fromkeys(record.caption for record in records if record.caption)
    if mixed:
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


def markdown(records: Sequence[Record]) -> str:
    """The board as a Markdown document."""
    header, rows = board(long_table(records), escape_markdown)
    table = tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=_alignment(header))
    notes = escape_markdown(caption(records, ERROR))
    lists = ""
    for title, lines in (("Failed", failed(records)), ("To know", remarks(records))):
        items = "".join(f"- {escape_markdown(line)}\n" for line in lines)
        lists += f"\n{title}:\n\n{items}" if items else ""
    return f"# Leaderboard\n\n{table}\n\n{notes}\n{lists}"


def terminal(records: Sequence[Record]) -> str:
    """The board as plain text."""
    header, rows = board(long_table(records), one_line)
    table = tabulate(rows, header, tablefmt="simple", disable_numparse=True, colalign=_alignment(header))
    failures = "".join(f"FAILED {line}\n" for line in failed(records))
    known = "".join(f"{line}\n" for line in remarks(records))
    return f"{table}\n\n{one_line(caption(records, ERROR))}\n{failures}{known}"


def latex(records: Sequence[Record]) -> str:
    """The board as a LaTeX table; needs the package booktabs."""
    header, rows = board(long_table(records), escape_latex, latex=True)
    alignment = _alignment(header)
    _, _, head, _, *body, _, _ = tabulate(
        rows, header, tablefmt="latex_raw", disable_numparse=True, colalign=alignment
    ).splitlines()
    columns = "".join(side[0] for side in alignment)
    return latex_table(columns, head, body, escape_latex(caption(records, ERROR)))


def csv(records: Iterable[Record]) -> str:
    """Every metric, headline or not, with all that its record says of it."""
    table = long_table(records).drop(columns="not_measured")
    return table.map(lambda cell: escape_csv(cell) if isinstance(cell, str) else cell).to_csv(index=False)


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


def cell(row: Any, *, latex: bool = False) -> str:
    """A value and its error, or why there is none."""
    if row is None:
        return "not measured"
    if _number(row) is None:
        return row.not_measured if isinstance(row.not_measured, str) else "failed" if row.n == 0 else "undefined"
    stderr = None if pd.isna(row.stderr) else row.stderr
    return with_error(row.value, stderr, r"$\pm$" if latex else "±")


def _number(row: Any) -> float | None:
    return None if row is None or pd.isna(row.value) else float(row.value)


def _alignment(header: Sequence[str]) -> list[str]:
    return ["left" if name in ("model", "site", "architecture", "origin") else "right" for name in header]


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return "no"
    return f"{numbers[0]:,}" if numbers[0] == numbers[-1] else f"{numbers[0]:,} to {numbers[-1]:,}"


def _shares(shares: Sequence[float]) -> str:
    return f"{shares[0]:.1%}" if shares[0] == shares[-1] else f"{shares[0]:.1%} to {shares[-1]:.1%}"
