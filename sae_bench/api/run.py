"""The harness from Python: the main job, SAEs on tensors, and what runs found, as tables of pandas.

    import sae_bench as sb

    run = sb.run(arch=["topk", "jumprelu"], model="demo", l0=32, out="runs/first")
    run.to_dataframe()
    sae = run.sae("topk.layer_9.resid_post.w2048.l0_32.seed0")
    f = sae.encode(x)                               # [..., d_sae] for x [..., d_in]

Settings are the command line's flags without their dashes, `eval_tokens` for `--eval-tokens`; where a flag takes
several values, one value or a list. docs/api.md shows more.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from sae_bench.api.sae import SAE
from sae_bench.errors import UserError, did_you_mean
from sae_bench.formats import saelens
from sae_bench.formats.foreign import About
from sae_bench.formats.open import find_sources, given, open_sae
from sae_bench.leaderboard import board_table, captions, compare_table, load, matched, tables
from sae_bench.leaderboard import compare as comparing
from sae_bench.leaderboard.compare import Comparison
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Record
from sae_bench.runs import pipeline
from sae_bench.runs.config import RunConfig
from sae_bench.runs.growing import grown
from sae_bench.runs.suite import configure, fields_of
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.convert import to_built_in
from sae_bench.synthetic.settings import is_synthetic

Capture = Literal["auto", "shared", "own"]
LogTo = Literal["tensorboard", "wandb"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder, and what it says."""

    path: Path

    @cached_property
    def records(self) -> Sequence[Record]:
        """One for each SAE and task, in the order of their names."""
        return RunFolder(self.path).records()

    @property
    def saes(self) -> list[str]:
        """The names of its SAEs."""
        return sorted(path.name for path in (self.path / "saes").glob("*"))

    @property
    def failures(self) -> dict[str, str]:
        """Why records have no values, by the names of SAE and task, `topk....seed0 reconstruction`."""
        return {f"{r.sae.id} {r.task}": r.failure for r in self.records if r.failure and not r.not_measured}

    def sae(self, name: str, device: str = "cpu") -> SAE:
        """One of its SAEs.

        Raises:
            UserError: there is none of that name, or its files are damaged.
        """
        if name not in self.saes:
            raise UserError(f'{self.path} has no SAE "{name}"{did_you_mean(name, self.saes)}')
        return load_sae(self.path / "saes" / name, device)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each SAE and metric: value, standard error, n, and what they are of."""
        return tables.long_table(self.records)

    def table(self, *, columns: Sequence[str] | None = None, over_seeds: bool = False, top: int | None = None) -> str:
        """The leaderboard as text; settings as those of the command `table`."""
        if columns is None and not over_seeds and top is None:
            return board_table.terminal(self.records)
        chosen = None if columns is None else list(columns)
        return board_table.table(self.records, "text", chosen, None, over_seeds=over_seeds, top=top)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}): {len(self.saes)} SAEs, {len(self.records)} records"


@dataclasses.dataclass(frozen=True)
class Compared:
    """Architectures at matched L0, with intervals: `print` it, or take its numbers."""

    comparisons: Sequence[Comparison]
    """One for each model, site and width."""
    metrics: Sequence[str]
    at_l0: Sequence[float]
    facts: str
    """What the numbers were made from."""

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each setting, metric, architecture and L0 ("area": the mean height of the curve over log L0)."""
        return compare_table.long_table(self.comparisons, self.metrics, self.at_l0)

    def __str__(self) -> str:
        return compare_table.written("text", self.comparisons, self.metrics, self.at_l0, self.facts)


def run(
    *,
    out: str | Path | None = None,
    config: str | None = None,
    on: str | None = None,
    capture: Capture = "auto",
    overwrite: bool = False,
    extend_tokens: bool = False,
    log_to: LogTo | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Run:
    """Train, evaluate and rank SAEs, as the command line does; the same call again does only what is missing.

    Args:
        out: The run's folder; without it, in runs/, by a name made from the settings.
        config: A suite, by its name or TOML file; `settings` go over it.
        on: Where the work is done: None is this process, "ray" all its devices or the cluster of RAY_ADDRESS.
        capture: With `on`: who captures activations.
        overwrite: Delete the run that the folder holds.
        extend_tokens: Train the SAEs that the folder holds further, to `tokens`.
        log_to: Show the training log there, too.
        quiet: Without progress on the screen.
        settings: `arch`, `model`, `l0`, `tokens` and all other flags of a run (python bench.py --help).

    Raises:
        UserError: a setting is unknown or out of range, or something asked for cannot be done; what was finished
            before stays. An SAE that fails is no error: `Run.failures` names it.
    """
    chosen = configure(config, settings_of(settings))
    folder = RunFolder(Path(out) if out is not None else Path("runs") / chosen.name)
    with folder.locked():
        work(chosen, folder, Progress(quiet), on, capture, log_to, overwrite=overwrite, extend_tokens=extend_tokens)
    return Run(folder.path)


def train(*, out: str | Path, config: str | None = None, quiet: bool = True, **settings: Any) -> dict[str, SAE]:
    """Train SAEs and evaluate nothing; by name. `run` with the same settings and `out` evaluates them later.

    Raises:
        UserError: as `run`.
    """
    chosen = configure(config, settings_of(settings))
    folder = RunFolder(Path(out))
    with folder.locked():
        work(chosen, folder, Progress(quiet), train_only=True)
    own = Run(folder.path)
    return {name: own.sae(name) for name in own.saes}


def evaluate(
    sae: SAE | SparseAutoencoder | str | Path | Sequence[str | Path],
    *,
    model: str | Path,
    tasks: Sequence[str] | str = (),
    out: str | Path | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Run:
    """Evaluate SAEs that are there: in memory, in files of any format that is read, or on the hub.

    Args:
        sae: One, or several paths and names as `--sae` takes them.
        model: Short name, Hugging Face name, or folder of the language model.
        tasks: Names of tasks; all by default.
        out: A folder for the records; without it one that is deleted with the process's other temporary files.
        settings: as `run`'s. `layer` and `site` say where an SAE reads that does not say it itself.

    Raises:
        UserError: as `run`.
    """
    folder = Path(tempfile.mkdtemp(prefix="sae_bench-") if out is None else out)
    settings = {**settings, "model": model, **({"tasks": tasks} if tasks else {})}
    if isinstance(sae, SAE | SparseAutoencoder):
        if settings.get("on"):
            raise UserError("--on: an SAE in memory is in this process alone: leave out on, or give the SAE's files")
        with tempfile.TemporaryDirectory() as files:
            if isinstance(sae, SAE):
                place = {name: of for name, of in (("layer", sae.layer), ("site", sae.site)) if of is not None}
                sae, settings = sae.autoencoder, {**({} if is_synthetic(model) else place), **settings}
            own = to_built_in(sae)
            saelens.write(Path(files), own, About({}, {}))
            with given(Path(files)) as name:
                return run(out=folder, quiet=quiet, sae=name, **settings)
    sources = [sae] if isinstance(sae, str | Path) else sae
    return run(out=folder, quiet=quiet, sae=[str(one) for one in sources], **settings)


def load_sae(name: str | Path, device: str = "cpu") -> SAE:
    """An SAE of a run or of any format that is read: a path, gemma-scope:..., or hf:owner/repo/path.

    Raises:
        UserError: there is none, there are several, or it cannot be read.
    """
    sources = find_sources(str(name))
    if len(sources) != 1:
        among = ", ".join(source.name for source in sources[:5])
        raise UserError(f'"{name}" holds {len(sources)} SAEs ({among}, ...): give the path of one of them')
    found = open_sae(sources[0])
    return SAE(found.build().to(device), found.place.kind, found.place.layer, found.place.model)


def load_run(path: str | Path) -> Run:
    """A run that is there.

    Raises:
        UserError: the folder holds no records.
    """
    load.gather([Path(path)])
    return Run(Path(path))


def compare(
    *runs: Run | str | Path,
    metric: Sequence[str] | str | None = None,
    at_l0: Sequence[float] | None = None,
    controls: bool = False,
) -> Compared:
    """Compare architectures at matched L0 over the seeds and documents of one or more runs.

    Args:
        metric: Metrics to compare; by default those of the leaderboard that have a better direction.
        at_l0: L0s to compare at, where they were measured; by default as the command `compare`.
        controls: Compare with controls, too.

    Raises:
        UserError: the runs cannot be compared, or a metric is in none of them.
    """
    if not runs:
        raise UserError("compare() needs a run: give Run objects or folders")
    records = load.gather([one.path if isinstance(one, Run) else Path(one) for one in runs])
    metrics = comparing.check_metrics(records, [metric] if isinstance(metric, str) else metric)
    found = comparing.comparisons(records, metrics, controls=controls)
    return Compared(found, metrics, at_l0 or matched.default_l0s(records), captions.caption(records))


def work(
    config: RunConfig,
    folder: RunFolder,
    progress: Progress,
    on: str | None = None,
    capture: Capture = "auto",
    log_to: LogTo | None = None,
    *,
    overwrite: bool = False,
    extend_tokens: bool = False,
    train_only: bool = False,
) -> Sequence[Record]:
    """Do what is missing of a run, here or on a cluster, in its folder, which is locked.

    Raises:
        UserError: as `run`.
    """
    if overwrite:
        folder.clear()
    else:
        config = grown(config, folder, progress, extended=extend_tokens)
    if on is None:
        return pipeline.run(config, folder, progress, log_to, train_only=train_only)
    try:
        from sae_bench.distributed.crew import cluster_crew
    except ImportError as error:
        if error.name not in ("ray", "grpc"):
            raise
        raise UserError("--on needs Ray: pip install 'sae-arch-bench[ray]'") from None
    with cluster_crew(on, config, folder, progress, log_to, capture) as crew:
        return pipeline.run(config, folder, crew.progress, log_to, crew, train_only=train_only)


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the names of fields, from those of flags.

    Raises:
        UserError: there is no such setting.
    """
    return fields_of({name: _plain(value) for name, value in given.items()})


def _plain(value: Any) -> Any:
    """A value as a suite would have it: lists and texts in the place of what Python has for them."""
    if isinstance(value, list | tuple | range):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
