"""Labelled sets of texts: those that come with SAE-Probes (Kantamneni et al. 2025, arXiv 2502.16681), and users' own.

The package `sae-probes` has 113 sets with two labels each, as many texts of the one as of the other. Only its files are
read: its code, and the many packages that this imports, need not be installed.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from sae_bench.errors import UserError, did_you_mean
from sae_bench.records.files import sha256

SHORT = 200
"""The most characters that the texts of a small set have on average: long ones take long to read."""

SMALL = (
    "22_headline_isobama", "23_headline_ischina", "24_headline_isiran", "41_truthqa_tf", "96_spam_is",
    "114_nyc_borough_Manhattan", "115_nyc_borough_Brooklyn", "117_us_state_FL", "118_us_state_CA", "119_us_state_TX",
    "129_arith_mc_A", "130_temp_cat_Frequency", "131_temp_cat_Typical Time", "132_temp_cat_Event Ordering",
    "133_context_type_Causality", "134_context_type_Belief_states", "135_context_type_Event_duration",
    "154_athlete_sport_football", "155_athlete_sport_basketball", "156_athlete_sport_baseball",
)  # fmt: skip
"""Of the sets with short texts the 20 with the fewest, in the package's order."""

NATURAL = "texts of sae-probes"
"""How the corpus `natural` begins to describe itself, which has the texts of all other sets."""

FEWEST = 12
"""The fewest texts of a label."""

READERS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class ProbeSet:
    """Texts with one of two labels each, n of them."""

    name: str
    texts: Sequence[str]
    labels: Int[ndarray, " n"]
    """0 or 1."""
    sha256: str
    """Of the file."""


def package_sets(names: Sequence[str]) -> list[ProbeSet]:
    """Sets of SAE-Probes: "small" and "all" stand for several.

    Raises:
        UserError: the package is not there, or has no set of such a name.
    """
    files = _package_files()
    wanted: dict[str, None] = {}
    for name in names:
        several = {"small": SMALL, "all": tuple(files)}.get(name, (name,))
        wanted |= dict.fromkeys(several)
    for name in wanted:
        if name not in files:
            raise UserError(f'--probe-sets: unknown set "{name}"{did_you_mean(name, [*files, "small", "all"])}')
    return [_labelled(name, _compressed(files[name]), "prompt", "target", files[name]) for name in wanted]


def own_set(file: str) -> ProbeSet:
    """A user's set: a csv, jsonl or parquet file with columns text and label.

    Raises:
        UserError: there is no such file, or it does not hold texts of two labels.
    """
    path = Path(file).expanduser()
    if not path.is_file() or path.suffix not in READERS:
        raise UserError(f'--probe-set "{file}": no such file of a kind among {", ".join(READERS)}; check the path')
    import pandas as pd

    try:
        # As it is written: "007" is no number, and "NA" no gap.
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        elif path.suffix == ".jsonl":
            table = pd.read_json(path, lines=True, dtype=False)
        else:
            table = pd.read_parquet(path)
            for _, values in table.items():
                list(values)  # bytes that are no text come to light here
    except (ValueError, TypeError, OSError, KeyError) as error:  # TypeError: a line of null; KeyError: of pandas' own
        said = " ".join(str(error).split())
        raise UserError(f'--probe-set "{file}" cannot be read as {path.suffix[1:]}: {said}') from None
    for column in ("text", "label"):
        if column not in table.columns:
            found = ", ".join(map(str, table.columns))
            raise UserError(f'--probe-set "{file}": no column "{column}" among: {found}; name one so')
    for i, text in enumerate(table["text"]):
        if not isinstance(text, str) and text is not None:
            raise UserError(
                f'--probe-set "{file}": row {i + 1} of column "text" holds {type(text).__name__}, not text; mend it'
            )
    return _labelled(path.stem, table, "text", "label", path)


def _package_files() -> dict[str, Path]:
    """The files of the package's binary sets, by name."""
    spec = importlib.util.find_spec("sae_probes")  # nothing of it is run
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the labelled sets are in the package sae-probes, which is not installed: pip install --no-deps "
            "sae-probes, or give texts of your own with --probe-set FILE"
        )
    data = Path(next(iter(spec.submodule_search_locations))) / "data"
    master = _compressed(data / "probing_datasets_MASTER.csv.zst")
    binary = master.loc[master["Data type"] == "Binary Classification", "Dataset save name"]
    return {Path(name).name.removesuffix(".csv"): data / f"{name}.zst" for name in binary}


def _compressed(path: Path) -> Any:
    """A table of a csv file that is compressed with zstd."""
    import pandas as pd
    import pyarrow  # type: ignore[import-untyped]

    with pyarrow.input_stream(str(path), compression="zstd") as stream:
        return pd.read_csv(stream)


def _labelled(name: str, table: Any, text: str, label: str, path: Path) -> ProbeSet:
    """A set of a table's two columns, whose labels are numbered in their order."""
    empty = table[text].isna() | table[label].isna()
    for column in (text, label):
        empty |= table[column].astype(str).str.strip() == ""
    if empty.any():
        raise UserError(
            f'probe set "{name}": row {int(np.argmax(empty)) + 1} has no text or no label; fill it, or drop it'
        )
    labels = table[label].astype(str).to_numpy()
    values, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(values) != 2:
        shown = ", ".join(map(str, values[:5]))
        raise UserError(f'probe set "{name}": {len(values)} labels ({shown}); a set has two')
    if min(counts) < FEWEST:
        least = values[int(np.argmin(counts))]
        raise UserError(f'probe set "{name}": {min(counts)} texts of label "{least}"; at least {FEWEST} are needed')
    return ProbeSet(name, table[text].astype(str).tolist(), numbers, sha256(path))
