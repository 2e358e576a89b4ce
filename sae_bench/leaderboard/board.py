"""A board: everything that figures and the report are drawn from, read once from the folders of some runs.

    run.json, records/                            the numbers
    saes/<sae>/metrics.jsonl                      training logs
    latents/<sae>/<latent>.json                   latents that were looked at, if any were

A folder under results/ holds these and not the weights, so whatever can be drawn of a run can be drawn again from what
was published. Records do not repeat the training log: with it, each of an SAE's would be larger by half.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sae_bench.leaderboard.load import check_comparable, gather
from sae_bench.leaderboard.palette import Look, looks
from sae_bench.leaderboard.setting import Setting
from sae_bench.records.files import of_our_form, read_sealed, sha256
from sae_bench.records.ownership import sealed
from sae_bench.records.run_folder import SAE_DESCRIPTION, RunFolder
from sae_bench.records.schema import Record, SAEDescription

log = logging.getLogger(__name__)

T = TypeVar("T")

TRAINING_LOG = "metrics.jsonl"


@dataclass(frozen=True)
class SAE:
    """One SAE: what it is, and all that was measured of it."""

    run: Path
    records: tuple[Record, ...]
    """One for each task, in their names' order."""

    @property
    def about(self) -> SAEDescription:
        """What the records say of the SAE itself."""
        return self.records[0].sae

    @property
    def id(self) -> str:
        return self.about.id

    @property
    def label(self) -> str:
        return self.about.label

    @property
    def setting(self) -> Setting:
        """What must be alike for two SAEs to share a figure."""
        return Setting.of(self.records[0])

    @property
    def target(self) -> float:
        """The wanted L0, or the raw coefficient; of an SAE from elsewhere, which has neither, the L0 it came to."""
        target = self.about.target
        return round(self.value("l0") or 0.0, 1) if target is None else target

    @property
    def seed(self) -> int | None:
        """None of an SAE that others trained."""
        return self.about.seed

    def value(self, metric: str) -> float | None:
        """A metric's value; None if it has none, or was not measured."""
        return next((record.scores[metric].value for record in self.records if metric in record.scores), None)

    @property
    def counts(self) -> tuple[list[int], int] | None:
        """On how many tokens each latent fired, and of how many; None if nobody counted."""
        for record in self.records:
            if "count" in record.per_latent and "n_tokens" in record.details:
                return [int(n) for n in record.per_latent["count"]], int(record.details["n_tokens"])
        return None

    def training_log(self) -> list[dict[str, Any]]:
        """Its logged steps; none if the log was not kept or, with a word, is not what was written."""
        path = RunFolder(self.run).sae_path(self.id) / TRAINING_LOG
        if not path.is_file():
            return []
        said = (sealed(path.with_name(SAE_DESCRIPTION)) or {}).get("files")
        rows = _rows(path)
        if rows is None or (isinstance(said, Mapping) and said.get(path.name) != sha256(path)):
            log.warning("%s is not what was written: it is left out", path)
            return []
        return rows

    def latents(self, read: Callable[[dict[str, Any]], T]) -> Iterator[T]:
        """What `read` makes of each of the latents that were looked at, in their order.

        Raises:
            UserError: a file is damaged, or of another form than `read` knows; the message names it.
        """
        folder = RunFolder(self.run).latents_path(self.id)
        for path in sorted(folder.glob("*.json"), key=lambda path: (len(path.stem), path.stem)):
            with of_our_form(path):
                found = read(read_sealed(path))
            yield found


@dataclass(frozen=True)
class Board:
    """Some runs, their records and their SAEs."""

    records: Sequence[Record]
    saes: Sequence[SAE]
    """Sorted by setting, architecture, target, seed."""

    @staticmethod
    def read(folders: Sequence[Path]) -> "Board":
        """Read runs, or published boards.

        Raises:
            UserError: a folder holds no records, a file is damaged, or the runs are not comparable.
        """
        records, saes = [], []
        for folder in folders:
            of: dict[str, list[Record]] = {}
            for record in gather([folder]):
                records.append(record)
                of.setdefault(record.sae.id, []).append(record)
            saes += [SAE(folder, tuple(found)) for found in of.values()]
        check_comparable(records)
        saes.sort(key=lambda sae: (sae.setting, sae.label, sae.target, sae.seed is not None, sae.seed, str(sae.run)))
        return Board(records, saes)

    @property
    def labels(self) -> list[str]:
        return sorted({sae.label for sae in self.saes})

    @property
    def controls(self) -> set[str]:
        """Labels of controls."""
        return {sae.label for sae in self.saes if sae.about.control}

    @property
    def looks(self) -> dict[str, Look]:
        """How each architecture looks, controls last."""
        return looks(self.labels, self.controls)

    @property
    def settings(self) -> list[Setting]:
        return sorted({sae.setting for sae in self.saes})


def _rows(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a training log, numbers and gaps by name; None if it is none."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError):
        return None
    return rows if all(isinstance(row, dict) and "tokens" in row and _numeric(row) for row in rows) else None


def _numeric(row: Mapping[str, Any]) -> bool:
    return all(value is None or type(value) in (int, float) for value in row.values())
