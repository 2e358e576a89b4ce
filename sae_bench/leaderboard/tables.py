"""The leaderboard: a pure function of records. No torch, no plugin: records say what their metrics mean.

One row per SAE, sorted by model, site, width, architecture and measured L0; one column per headline metric, each value
with its standard error, an arrow for the better direction, and below the table what was counted.

Names and reasons in records may come from anyone. Each format has one function that makes text of it harmless, and
everything that is not our own constant goes through it: `one_line`, `escape_markdown`, `escape_latex`, `escape_csv`.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from sae_bench.errors import UserError, one_line
from sae_bench.records.files import write_text
from sae_bench.records.run_folder import RunFolder

ARROWS = {"up": "↑", "down": "↓", None: ""}
LATEX_ARROWS = {"up": r" $\uparrow$", "down": r" $\downarrow$", None: ""}
FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # and their full-width forms
KEYS = ["model", "site", "width", "architecture", "target", "seed", "run", "sae"]
TRAINED_HERE = "this run"

NO_JUDGE = "no judge"

Record = Mapping[str, Any]


def gather(folders: Sequence[Path], *, mix: bool = False) -> list[Record]:
    """Records of some runs.

    Raises:
        UserError: a folder holds no records, or, without `mix`, the runs measured on different tokens or with different
            versions of a task, so that their numbers must not share a table.
    """
    records: list[Record] = []
    for folder in folders:
        found = RunFolder(folder).records()
        if not found:
            raise UserError(f"{folder} holds no records: give the folder of a finished run")
        records += found
    if not mix:
        check_comparable(records)
    return records


def check_comparable(records: Sequence[Record]) -> None:
    """Raise UserError unless records of one model and task share their evaluation tokens and the task's version."""
    if found := differences(records):
        raise UserError(
            f"the records were made with different {' and '.join(found)}: tabulate these runs separately, or with "
            "--mix, which says so in the table"
        )


def differences(records: Sequence[Record]) -> list[str]:
    """What keeps records of one model and task from being compared: nothing, unless someone mixed them."""
    found = []
    for what, value in (
        ("evaluation tokens", lambda record: record["provenance"]["eval_fingerprint"]),
        ("versions of a task", lambda record: (record["task"], record["task_version"])),
        ("judges, prompts or latents", judged_by),
    ):
        seen: dict[Any, set[Any]] = {}
        for record in records:
            if (made := value(record)) is not None:
                seen.setdefault((record["provenance"]["model"], record["task"]), set()).add(made)
        if any(len(values) > 1 for values in seen.values()):
            found.append(what)
    return found


def judged_by(record: Record) -> str | None:
    """What decided the scores of a record about latents, as text; None for other records, and where nobody judged."""
    settings = record.get("details", {}).get("judge")
    return None if settings is None else json.dumps(settings, sort_keys=True)


def on_tokens(records: Iterable[Record]) -> list[Record]:
    """The records of what was measured on the evaluation tokens."""
    return [record for record in records if record.get("measured_on", "tokens") == "tokens"]


def long_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per (SAE, metric), with everything the record says of the value: the CSV."""
    rows = []
    records = list(records)
    imported = any(record["sae"].get("origin") for record in records)
    for record in records:
        sae = record["sae"]
        common = {
            "model": record["provenance"]["model"],
            "site": sae["site"]["name"],
            "width": sae["d_sae"],
            "architecture": sae["label"],
            "target": sae["target_l0"] if sae["target_l0"] is not None else sae["coefficient"],
            "seed": sae["seed"],
            "run": record["provenance"]["config_hash"][:8],
            "sae": sae["id"],
            **({"origin": _origin(sae)} if imported else {}),
            "task": record["task"],
            "task_version": record["task_version"],
        }
        for name, metric in record["metrics"].items():
            score = record["scores"].get(name, {"value": None, "stderr": None, "n": 0, "note": record["failure"]})
            rows.append(common | {"metric": name} | {key: score.get(key) for key in ("value", "stderr", "n", "note")}
                        | {key: metric[key] for key in ("better", "unit", "headline")})  # fmt: skip
    return pd.DataFrame(rows)


def _origin(sae: Mapping[str, Any]) -> str:
    """Where an SAE is from."""
    return str(sae["origin"]["source"]) if sae.get("origin") else TRAINED_HERE


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


ENOUGH_DOCUMENTS = 20
"""Below this, a standard error clustered by document covers less than it says. With Student's t at 19 degrees of
freedom, one standard error covers 67% where the normal has 68.3%, and two cover 94% where it has 95.4%; documents of
unequal length count as fewer."""

ERROR = "± is one standard error, clustered by document."


def caption(records: Sequence[Record], error: str = "") -> str:
    """What the table was made from, in one sentence per fact; `error` says what ± is."""
    provenance = records[0]["provenance"]
    fingerprints = sorted({record["provenance"]["eval_fingerprint"][:12] for record in records})
    mixed = differences(records)
    models = sorted({record["provenance"]["model"] for record in records})
    sites = sorted({record["sae"]["site"]["name"] for record in records})
    widths = sorted({record["sae"]["d_sae"] for record in records})
    counts = sorted({score["n"] for record in on_tokens(records) for score in record["scores"].values()})
    own = [record["sae"] for record in records if not record["sae"].get("origin")]
    n_imported = len({record["sae"]["id"] for record in records if record["sae"].get("origin")})
    trainings = [sae.get("training") or {} for sae in own]
    trained = sorted({training["tokens_seen"] for training in trainings if "tokens_seen" in training})
    documents = sorted({record["provenance"]["eval_documents"] for record in on_tokens(records)})
    overlaps = sorted({training["eval_overlap"] for training in trainings if training.get("eval_overlap") is not None})
    datasets = sorted({record["provenance"]["dataset"] for record in records})
    presets = sorted({record["provenance"]["preset"] for record in records})
    seeds = sorted({sae["seed"] for sae in own})
    versions = sorted({f"{record['task']} {record['task_version']}" for record in records})
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
        *([few_documents(documents[0])] if documents and documents[0] < ENOUGH_DOCUMENTS else []),
        *([f"{n_imported} from elsewhere, trained as their origin says."] if n_imported else []),
        f"Seeds {', '.join(map(str, seeds)) or 'unknown'}"
        + ("; variance between seeds is unknown." if len(seeds) == 1 else ".")
        + f" {error}".rstrip(),
        f"Versions: {', '.join(versions)}; sae-arch-bench {provenance['versions']['sae-arch-bench']}.",
    ]
    parts += dict.fromkeys(said for record in records if (said := record.get("details", {}).get("caption")))
    if mixed:
        parts.insert(0, f"MIXED: these rows were made with different {' and '.join(mixed)}; do not compare them.")
    return " ".join(parts)


def few_documents(n_documents: int) -> str:
    """What to know of errors from too few documents."""
    return (
        f"Errors from {n_documents} documents are too small: at least {ENOUGH_DOCUMENTS} are needed for them to cover "
        "what they say; raise --eval-tokens."
    )


def remarks(records: Iterable[Record]) -> list[str]:
    """One line for everything that a record asks its reader to know."""
    return [
        one_line(f"{record['sae']['id']}: {record['task']}: {remark}")
        for record in records
        for remark in record.get("details", {}).get("remarks", ())
    ]


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
    body = tabulate(rows, header, tablefmt="latex_raw", disable_numparse=True, colalign=_alignment(header))
    lines = body.splitlines()
    rules = iter((r"\toprule", r"\midrule", r"\bottomrule"))
    lines = [next(rules) if line.strip() == r"\hline" else line for line in lines]
    notes = escape_latex(caption(records, ERROR))
    return "\n".join([r"\begin{table}", r"\centering", r"\small", *lines, rf"\caption{{{notes}}}", r"\end{table}", ""])


def csv(records: Iterable[Record]) -> str:
    """Every metric, headline or not, with all that its record says of it."""
    return long_table(records).map(lambda cell: escape_csv(cell) if isinstance(cell, str) else cell).to_csv(index=False)


def failed(records: Iterable[Record]) -> list[str]:
    """One line for every record of a failure."""
    return [
        one_line(f"{record['sae']['id']}: {record['task']}: {record['failure']}")
        for record in records
        if record["failure"]
    ]


def write_board(folder: Path, records: Sequence[Record]) -> None:
    """Write leaderboard.md, .csv and .tex."""
    for name, content in board_files(records).items():
        write_text(folder / name, content)


def board_files(records: Sequence[Record]) -> dict[str, str]:
    """What the board's files say, by their names."""
    return {"leaderboard.md": markdown(records), "leaderboard.csv": csv(records), "leaderboard.tex": latex(records)}


def with_error(value: float, stderr: float | None, plus_minus: str = "±") -> str:
    """`0.1234 ± 0.0056`: the error to two significant digits and the value to as many places."""
    if stderr is None or not stderr > 0:
        return f"{value:.4g}"
    places = max(0, 1 - math.floor(math.log10(stderr)))
    if places > 8:
        return f"{value:.3g} {plus_minus} {stderr:.2g}"
    return f"{value:.{places}f} {plus_minus} {stderr:.{places}f}"


def escape_markdown(text: str) -> str:
    """Text as Markdown shows it: no cell ends early, no tag, link, formula or emphasis comes to life.

    Character references mean the same to every dialect, backslashes do not. An underscore inside a word, as names
    have it, is no emphasis anywhere and stays legible.
    """
    special = r"[\\`*{}\[\]<>&|#~$^]|(?<![^\W_])_|_(?![^\W_])"
    return re.sub(special, lambda found: f"&#{ord(found[0])};", one_line(text))


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it. A bracket or asterisk that begins a row would be an argument of the \\\\ before it."""
    special = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}",
    }  # fmt: skip
    return re.sub(r"[\\~^±<>|\[\]*#$%&_{}]", lambda found: special.get(found[0], "\\" + found[0]), one_line(text))


def escape_csv(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe says that it is text."""
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA_STARTS) and not _is_number(line) else line


def cell(row: Any, *, latex: bool = False) -> str:
    """A value and its error, or why there is none."""
    if row is None:
        return "not measured"
    if _number(row) is None:
        return NO_JUDGE if row.note == NO_JUDGE else "failed" if row.n == 0 else "undefined"
    stderr = None if pd.isna(row.stderr) else row.stderr
    return with_error(row.value, stderr, r"$\pm$" if latex else "±")


def _number(row: Any) -> float | None:
    return None if row is None or pd.isna(row.value) else float(row.value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _alignment(header: Sequence[str]) -> list[str]:
    return ["left" if name in ("model", "site", "architecture", "origin") else "right" for name in header]


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return "no"
    return f"{numbers[0]:,}" if numbers[0] == numbers[-1] else f"{numbers[0]:,} to {numbers[-1]:,}"


def _shares(shares: Sequence[float]) -> str:
    return f"{shares[0]:.1%}" if shares[0] == shares[-1] else f"{shares[0]:.1%} to {shares[-1]:.1%}"
