"""The command line. Flat for the main job, verbs for the rest; nothing heavy is imported before it is needed."""

import logging
import os
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError, UnusedCliTokensError

from sae_bench._version import __version__
from sae_bench.cli.latents import explain
from sae_bench.cli.leaderboard import board, claims, compare, figures, power, report, table
from sae_bench.cli.lists import ls
from sae_bench.cli.runs import convert, export, publish, quieten_libraries, submit, verify
from sae_bench.cli.serve import serve
from sae_bench.cli.settings import GROUPS, Settings
from sae_bench.cli.study import study
from sae_bench.cli.tune import tune
from sae_bench.errors import UserError, did_you_mean, one_line
from sae_bench.parsing import Heading
from sae_bench.progress import Progress
from sae_bench.records.redact import install_redaction, redact
from sae_bench.runs.suite import configure
from sae_bench.signals import stop_signals

HELP = """Compare sparse autoencoder architectures on one stream of language-model activations.

Trains every requested architecture at every requested sparsity, evaluates every SAE on the same held-out tokens, writes
one record per SAE and task, and prints the leaderboard. The same command again does only what is missing.

    python bench.py --arch all --model demo --l0 16 32 64
"""

app = App(
    name="bench.py",
    help=HELP,
    version=__version__,
    default_parameter=Parameter(negative=(), consume_multiple=True),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)

ELSEWHERE = {
    "--suite": "--config",
    "--steps": "--tokens, each of which is used --reuse times",
    "--epochs": "--reuse",
    "--lr": "--arch topk:lr=1e-3",
    "--learning-rate": "--arch topk:lr=1e-3",
    "--k": "--l0",
    "--d-sae": "--width",
    "--expansion-factor": "--width",
    "--hook-name": "--layer and --site",
    "--hookpoints": "--layer and --site",
}
"""What other trainers call a flag, or people try first, and what says it here."""

flag = partial(Parameter, group=GROUPS[Heading.RUN], show_default=False)


@dataclass(frozen=True)
class Command:
    """What a command does besides a run's settings: none of it changes a number."""

    config: Annotated[str | None, Parameter(group=GROUPS[Heading.WHAT])] = None
    """A suite: name (see `ls suites`) or TOML file; flags override it."""
    out: Annotated[Path | None, flag()] = None
    """The run's folder. Default: runs/ and a name made from the settings."""
    overwrite: Annotated[bool, flag()] = False
    """Delete the run that the folder holds, and start anew."""
    on: Annotated[str | None, flag()] = None
    """Where the work is done: ray (all devices of this machine, or the cluster of RAY_ADDRESS), or a cluster's
    ray://HOST:PORT or HOST:PORT. Default: this process."""
    capture: Annotated[Literal["auto", "shared", "own"] | None, flag()] = None
    """With --on: one device captures for others that train (shared), every device for itself (own), or whichever the
    plan says is sooner done (auto, the default)."""
    extend_tokens: Annotated[bool, flag()] = False
    """Train the SAEs that the folder holds further, from fewer tokens to --tokens."""
    log_to: Annotated[Literal["tensorboard", "wandb"] | None, flag()] = None
    """Show the training log there too; needs the extra of that name."""
    emit: Annotated[Literal["saebench"] | None, flag()] = None
    """Write the results as SAEBench's core evaluation writes its own, too."""
    dry_run: Annotated[bool, flag()] = False
    """Print the plan - SAEs, steps, memory, disk, time - and stop; also for a --device that is not here."""
    devices: Annotated[str | None, flag()] = None
    """With --dry-run: plan for these, 64xH100 or 8xH100,4xA100 or 2xcpu (cores), and print cells, time and cost."""
    dollars_per_hour: Annotated[float | None, flag()] = None
    """What one of the --devices costs."""
    quiet: Annotated[bool, flag()] = False
    """Print the leaderboard alone."""


@app.default
def bench(settings: Settings | None = None, command: Annotated[Command | None, Parameter(name="*")] = None) -> int:
    """Train, evaluate and rank SAEs."""
    command = command or Command()
    config = configure(command.config, settings or {})
    if config.trust_remote_code:
        logging.getLogger(__name__).warning("--trust-remote-code: code that comes with %s runs as you", config.model)
    progress = Progress(command.quiet)
    quieten_libraries()
    if not command.quiet:  # what is done once, and under which licence, is news
        logging.getLogger("sae_bench").setLevel(logging.INFO)
    from sae_bench.api.run import work
    from sae_bench.leaderboard import board_table, captions
    from sae_bench.leaderboard.text_tables import terminal_width
    from sae_bench.records.run_folder import RunFolder

    folder = RunFolder(command.out or Path("runs") / config.name)
    if command.extend_tokens and command.dry_run:
        raise UserError(
            "--dry-run plans no --extend-tokens: leave it out and give another --out, for a training in one go"
        )
    if command.devices is not None or command.dollars_per_hour is not None:
        from sae_bench.distributed.describe import describe_sweep

        how = {"dry_run": command.dry_run, "overwrite": command.overwrite}
        print(describe_sweep(config, folder, command.devices, command.dollars_per_hour, **how))
        return 0
    if command.dry_run:
        from sae_bench.runs.dry_run import describe_plan

        print(describe_plan(config, folder, overwrite=command.overwrite))
        return 0
    if command.capture is not None and command.on is None:
        raise UserError(f"--capture {command.capture} needs --on: without it one process captures for all its SAEs")
    if command.extend_tokens and command.out is None:
        raise UserError("--extend-tokens needs --out, the folder of the run that is to be trained further")
    with folder.locked():
        records = work(
            config, folder, progress, command.on, command.capture or "auto", command.log_to,
            overwrite=command.overwrite, extend_tokens=command.extend_tokens,
        )  # fmt: skip
        if command.emit:
            from sae_bench.formats.saebench import emit

            emit(folder, records)
    print(board_table.terminal(records, terminal_width()), end="")
    progress.say(f"records and tables: {folder.path}")
    return 1 if captions.failed(records) else 0


VERBS = (
    ls,
    tune,
    table,
    compare,
    power,
    claims,
    figures,
    report,
    serve,
    board,
    explain,
    verify,
    export,
    convert,
    publish,
    submit,
)
for verb in VERBS:
    app.command(verb)
app.command(study)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 something failed, 2 a user's mistake, 130 interrupted, 141 unread."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    install_redaction()
    try:
        with stop_signals():
            code = app(arguments, exit_on_error=False, print_error=False)
    except UnusedCliTokensError as error:
        word = (error.unused_tokens or [""])[0]
        words = sys.argv[1:] if arguments is None else arguments
        before = [part for part in words[: words.index(word)] if part.startswith("--")]
        if before:
            code = _complain(f'"{word}" is too much: {before[-1]} takes one value')
        else:
            code = _complain(
                f'unknown verb "{word}"{did_you_mean(word, [*(verb.__name__ for verb in VERBS), "study"])}'
            )
    except UnknownOptionError as error:
        name = (error.token.keyword or error.token.value or "").split("=")[0]
        takes_settings = tuple(error.command_chain or ()) in ((), ("tune",))
        here = ELSEWHERE.get(name.replace("_", "-")) if takes_settings else None
        code = _complain(f"unknown option {name}: here it is {here}" if here else str(error))
    except (CycloptsError, UserError) as error:
        code = _complain(str(error))
    except BrokenPipeError:  # whoever read our output, as `head` does, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except KeyboardInterrupt:
        again = [part for part in (sys.argv[1:] if arguments is None else arguments) if part != "--overwrite"]
        command = shlex.join(["python", "bench.py", *again])
        print(redact(f"interrupted; nothing finished is lost, go on with: {command}"), file=sys.stderr)
        code = 130
    sys.exit(code)


def _complain(message: str) -> int:
    print(redact(f"error: {one_line(message)}"), file=sys.stderr)
    return 2
