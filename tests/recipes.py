"""Recipes as `tune` leaves them, with trials beside them, of a search that nobody made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_bench.records.files import digest_of, write_sealed
from sae_bench.runs.tuned import CHECK, SEARCHED, TunedArch, as_toml, runs_of

SEARCH: dict[str, Any] = {
    "model": "demo", "dataset": "embedded", "seeds": [0], "l0s": [16.0], "tokens": 4096, "preset": "short",
    "part": "tuning", "trials": 1, "rungs": 1, "check_seeds": 2, "model_sha256": "a" * 64,
    "versions": {"torch": "2.13.0"},
}  # fmt: skip


def write_recipe(path: Path, archs: Mapping[str, TunedArch], **about: Any) -> str:
    """A recipe for these architectures; `about` is what its search says. Its trials are in a folder beside it."""
    search = SEARCH | about
    config = {name: search[name] for name in SEARCHED if name in search}
    made = {name: search[name] for name in ("model", "dataset", "versions", "model_sha256")}
    trials = {
        name: [
            {"arch": label, "trial": trial, "settings": of.settings, "saes": [{"seed": seed} for seed in seeds]}
            for label, of in archs.items()
            for trial in range(search["trials"])
        ]
        for name in runs_of(search["rungs"])
        for seeds in [range(1, 1 + search["check_seeds"]) if name == CHECK else search["seeds"]]
    }
    for name, of_run in trials.items():
        write_sealed(path.with_suffix("") / f"{name}.json", {**made, "config": config, "trials": of_run})
    search["trials_sha256"] = digest_of([*trials.values()])
    path.write_text(as_toml(search, archs, "of a search\nthat nobody made"))
    return str(path)
