"""`tune`: the same search for every architecture, and the recipe that it finds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from sae_bench.cli.runs import quieten_libraries
from sae_bench.cli.settings import GROUPS, Settings
from sae_bench.parsing import Heading
from sae_bench.runs.suite import configure


def _search(low: int) -> Parameter:
    return Parameter(group="Search", validator=Number(gte=low))


@dataclass(frozen=True)
class Search:
    """How much is tried, and what a command does besides a run's settings."""

    trials: Annotated[int, _search(2)] = 9
    """Settings tried for each architecture, the preset's own among them."""
    rungs: Annotated[int, _search(1)] = 2
    """Trainings of rising length; the last has --tokens."""
    factor: Annotated[int, _search(2)] = 3
    """Of so many trials one goes on to the next rung, which is as many times longer."""
    check_seeds: Annotated[int, _search(2)] = 3
    """Seeds, other than --seed, that the winner is held against the preset's settings with."""
    config: Annotated[str | None, Parameter(group=GROUPS[Heading.WHAT])] = None
    """A suite: name (see `ls suites`) or TOML file; flags override it. Its tasks are left out."""
    out: Annotated[Path | None, Parameter(group=GROUPS[Heading.RUN], show_default=False)] = None
    """The tuning's folder. Default: runs/ and a name made from the settings."""
    on: Annotated[str | None, Parameter(group=GROUPS[Heading.RUN], show_default=False)] = None
    """Where the work is done: ray, or a cluster's ray://HOST:PORT. Default: this process."""
    overwrite: Annotated[bool, Parameter(group=GROUPS[Heading.RUN], show_default=False)] = False
    """Delete the tuning that the folder holds, and start anew."""
    dry_run: Annotated[bool, Parameter(group=GROUPS[Heading.RUN], show_default=False)] = False
    """Print rungs, trials, time, memory and disk, and stop."""
    quiet: Annotated[bool, Parameter(group=GROUPS[Heading.RUN], show_default=False)] = False
    """Print what tuning was worth, and nothing else."""


def tune(settings: Settings | None = None, search: Annotated[Search | None, Parameter(name="*")] = None) -> int:
    """Look for the best settings of every architecture, in the same way, and write the recipe that --recipe takes.

    Every architecture has as many trials: the preset's own settings, and others of learning rate and its own knobs, by
    successive halving, at every --l0 and --seed. They are trained and measured on a part of the text that no board
    with a recipe has. What diverges, or misses an L0 by more than a tenth, does not win. Prints what it was worth to
    each; the same command again goes on. docs/tuning.md says how.
    """
    search = search or Search()
    config = configure(search.config, settings or {})
    quieten_libraries()
    from sae_bench.api.tune import search_in
    from sae_bench.progress import Progress
    from sae_bench.tuning.describe import describe_tuning
    from sae_bench.tuning.trials import TuneSettings

    amount = TuneSettings(
        trials=search.trials, rungs=search.rungs, factor=search.factor, check_seeds=search.check_seeds
    )
    out = search.out or Path("runs") / f"tuning.{config.name}"
    if search.dry_run:
        print(describe_tuning(config, amount, out))
        return 0
    progress = Progress(search.quiet)
    found = search_in(out, config, amount, progress, search.on, overwrite=search.overwrite)
    print(found, end="")
    progress.say(f"recipe: {found.recipe}")
    return 0
