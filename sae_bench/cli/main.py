"""The command line. Flat for the main job, verbs for the rest; nothing heavy is imported before it is needed."""

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter, UnusedCliTokensError

from sae_bench import __version__
from sae_bench.cli.boards import board, claims, compare, figures, report, table
from sae_bench.cli.latents import explain
from sae_bench.cli.libraries import quieten_libraries
from sae_bench.cli.lists import ls
from sae_bench.cli.runs import verify
from sae_bench.cli.saes import convert, export, publish
from sae_bench.errors import UserError, did_you_mean, one_line
from sae_bench.records.redact import install_redaction, redact
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

WHAT, MODEL, SPARSITY, DATA, INTERPRET, RUN = (
    Group(name, sort_key=i)
    for i, name in enumerate(("What", "Language model", "SAEs", "Data and training", "Interpretability", "Run"))
)


@app.default
def bench(
    *,
    arch: Annotated[list[str] | None, Parameter(group=WHAT)] = None,
    sae: Annotated[list[str] | None, Parameter(group=WHAT)] = None,
    tasks: Annotated[list[str] | None, Parameter(group=WHAT)] = None,
    config: Annotated[str | None, Parameter(group=WHAT)] = None,
    preset: Annotated[str | None, Parameter(group=WHAT)] = None,
    plugin: Annotated[list[str] | None, Parameter(group=WHAT)] = None,
    model: Annotated[str | None, Parameter(group=MODEL)] = None,
    layer: Annotated[list[int] | None, Parameter(group=MODEL)] = None,
    site: Annotated[list[str] | None, Parameter(group=MODEL)] = None,
    revision: Annotated[str | None, Parameter(group=MODEL)] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"] | None, Parameter(group=MODEL)] = None,
    trust_remote_code: Annotated[bool | None, Parameter(group=MODEL)] = None,
    width: Annotated[list[str] | None, Parameter(group=SPARSITY)] = None,
    l0: Annotated[list[float] | None, Parameter(group=SPARSITY)] = None,
    sparsity: Annotated[list[float] | None, Parameter(group=SPARSITY)] = None,
    seed: Annotated[list[int] | None, Parameter(group=SPARSITY)] = None,
    dataset: Annotated[str | None, Parameter(group=DATA)] = None,
    text_column: Annotated[str | None, Parameter(group=DATA)] = None,
    tokens: Annotated[str | None, Parameter(group=DATA)] = None,
    reuse: Annotated[str | None, Parameter(group=DATA)] = None,
    eval_tokens: Annotated[str | None, Parameter(group=DATA)] = None,
    eval_skip: Annotated[str | None, Parameter(group=DATA)] = None,
    context_size: Annotated[str | None, Parameter(group=DATA)] = None,
    batch_size: Annotated[str | None, Parameter(group=DATA)] = None,
    buffer_tokens: Annotated[str | None, Parameter(group=DATA)] = None,
    latents: Annotated[int | None, Parameter(group=INTERPRET)] = None,
    interp_tokens: Annotated[str | None, Parameter(group=INTERPRET)] = None,
    hard_negatives: Annotated[bool | None, Parameter(group=INTERPRET)] = None,
    chance: Annotated[bool | None, Parameter(group=INTERPRET)] = None,
    autointerp_scorers: Annotated[list[str] | None, Parameter(group=INTERPRET)] = None,
    judge_model: Annotated[str | None, Parameter(group=INTERPRET)] = None,
    judge_base_url: Annotated[str | None, Parameter(group=INTERPRET)] = None,
    explainer_model: Annotated[str | None, Parameter(group=INTERPRET)] = None,
    explainer_base_url: Annotated[str | None, Parameter(group=INTERPRET)] = None,
    judge_excerpts: Annotated[int | None, Parameter(group=INTERPRET)] = None,
    judge_budget: Annotated[str | None, Parameter(group=INTERPRET)] = None,
    judge_prices: Annotated[str | None, Parameter(group=INTERPRET)] = None,
    judge_concurrency: Annotated[int | None, Parameter(group=INTERPRET)] = None,
    judge_timeout: Annotated[float | None, Parameter(group=INTERPRET)] = None,
    out: Annotated[Path | None, Parameter(group=RUN)] = None,
    device: Annotated[str | None, Parameter(group=RUN)] = None,
    kernels: Annotated[Literal["auto", "dense", "sparse"] | None, Parameter(group=RUN)] = None,
    compile: Annotated[bool | None, Parameter(group=RUN)] = None,
    limit: Annotated[int | None, Parameter(group=RUN)] = None,
    checkpoint_every: Annotated[str | None, Parameter(group=RUN)] = None,
    overwrite: Annotated[bool, Parameter(group=RUN)] = False,
    extend_tokens: Annotated[bool, Parameter(group=RUN)] = False,
    log_to: Annotated[Literal["tensorboard", "wandb"] | None, Parameter(group=RUN)] = None,
    emit: Annotated[Literal["saebench"] | None, Parameter(group=RUN)] = None,
    dry_run: Annotated[bool, Parameter(group=RUN)] = False,
    quiet: Annotated[bool, Parameter(group=RUN)] = False,
) -> int:
    """Train, evaluate and rank SAEs.

    Parameters
    ----------
    arch
        Architectures, or all; with settings: gated:penalty=ri_l1,lr=5e-4. Default: all; none with --sae.
    sae
        SAEs from elsewhere to evaluate: files, folders, globs, runs, gemma-scope:9b-pt-res/layer_20/..., or
        hf:owner/repo/path. Their site is read off them; where they do not say it, --layer and --site do.
    tasks
        Tasks to evaluate. Default: all.
    config
        A suite: name (see `ls suites`) or TOML file; flags override it.
    preset
        Training recipe: paper (two million steps) or short. Default: short.
    plugin
        Python files with architectures, tasks or scorers of your own.
    model
        Short name (see `ls models`), Hugging Face name, or folder. Default: demo.
    layer
        Decoder layers, from 0. Default: the middle one.
    site
        resid_post, mlp_out, attn_out, or path:MODULE. Default: resid_post.
    revision
        Branch, tag or commit of the model on the hub.
    dtype
        The language model's; SAEs are float32 always.
    trust_remote_code
        Run Python code that comes with the model. Only for authors you trust.
    width
        Numbers of latents: 4096, 16k.
    l0
        Wanted L0s; every architecture is brought to each.
    sparsity
        Raw sparsity coefficients (k for topk) instead of --l0.
    seed
        Seeds of initial weights and data order. Default: 0.
    dataset
        "embedded", a local text, jsonl or parquet file or folder, or a hub dataset NAME or NAME:CONFIG. Default: the
        Pile for models of `ls models`, else embedded.
    text_column
        Column that holds the text. Default: text.
    tokens
        Activations captured for training.
    reuse
        Times each captured activation is trained on.
    eval_tokens
        Held-out tokens, the same for every SAE.
    eval_skip
        Held-out tokens to pass over first, to tune settings on others than a board evaluates on.
    context_size
        Tokens in a context, BOS included.
    batch_size
        Activations in a training batch.
    buffer_tokens
        Activations in the shuffle buffer: bounds memory.
    latents
        Latents of each SAE to collect excerpts of, for the judge or to look at. Default: 100 if there is a judge.
    interp_tokens
        Held-out tokens, after those of the evaluation, to find the excerpts in. Default: 2M, short: 16k.
    hard_negatives
        Among the excerpts in which a latent is silent take some in which similar latents fire.
    chance
        Explain and score the latents of a random SAE too, to see what chance looks like.
    autointerp_scorers
        Ways to score an explanation (see `ls scorers`). Default: detection fuzzing.
    judge_model
        Language model that explains latents and scores explanations (docs/autointerp.md). Default: no judge.
    judge_base_url
        Its endpoint, if it is not OpenAI's: http://localhost:8000/v1. Keys are read from the environment alone.
    explainer_model
        Another model for the explanations.
    explainer_base_url
        Another endpoint for the explanations.
    judge_excerpts
        Excerpts in one question of detection or fuzzing; 1 for a small model. Default: 10.
    judge_budget
        The most that judging may cost in this command: $5 or 2M tokens.
    judge_prices
        TOML file with prices of models, in dollars per million tokens.
    judge_concurrency
        Requests under way at once. Default: 8.
    judge_timeout
        Seconds for a request. Default: 60.
    out
        The run's folder. Default: runs/ and a name made from the settings.
    device
        cpu, cuda, cuda:1. Default: cuda where there is one.
    kernels
        Training on active pairs (sparse), on everything (dense), or whichever is measured to be faster (auto).
    compile
        Compile the losses with torch.compile: slow to start, needs a C++ compiler.
    limit
        Evaluate on at most this many contexts, for a quick look.
    checkpoint_every
        Time (30s, 10m) or number of steps between two checkpoints. Default: 10m.
    overwrite
        Delete the run that the folder holds, and start anew.
    extend_tokens
        Train the SAEs that the folder holds further, from fewer tokens to --tokens.
    log_to
        Show the training log there too; needs the extra of that name.
    emit
        Write the results as SAEBench's core evaluation writes its own, too.
    dry_run
        Print the plan - SAEs, steps, memory, disk - and stop.
    quiet
        Print the leaderboard alone.
    """
    from sae_bench.lm.load import MODELS
    from sae_bench.progress import Progress
    from sae_bench.registry import ARCHITECTURES, load_plugin
    from sae_bench.runs.config import RunConfig, load_suite

    suite = load_suite(config) if config else {}
    flags: dict[str, Any] = {
        "archs": arch, "tasks": tasks, "preset": preset, "plugins": plugin, "model": model, "layers": layer,
        "sites": site, "revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code, "widths": width,
        "l0s": l0, "sparsity": sparsity, "seeds": seed, "dataset": dataset, "text_column": text_column,
        "tokens": tokens, "reuse": reuse, "eval_tokens": eval_tokens, "eval_skip": eval_skip,
        "context_size": context_size,
        "batch_size": batch_size, "buffer_tokens": buffer_tokens, "device": device, "kernels": kernels,
        "compile": compile, "limit": limit, "checkpoint_every": checkpoint_every,
        "n_latents": latents, "interp_tokens": interp_tokens, "hard_negatives": hard_negatives, "chance": chance,
        "scorers": autointerp_scorers, "judge_model": judge_model, "judge_base_url": judge_base_url,
        "explainer_model": explainer_model, "explainer_base_url": explainer_base_url, "judge_excerpts": judge_excerpts,
        "judge_budget": judge_budget,
        "judge_prices": judge_prices, "judge_concurrency": judge_concurrency, "judge_timeout": judge_timeout,
    }  # fmt: skip
    if suite.get("trust_remote_code") and trust_remote_code is None:
        raise UserError(f"suite {config} runs code that comes with the model: add --trust-remote-code if you trust it")
    for path in plugin or suite.get("plugins", ()):
        load_plugin(path)
    if sources := sae or suite.get("saes"):
        from sae_bench.runs.import_saes import name_sources

        flags["saes"] = name_sources(sources)
    settings = RunConfig.build(
        {"archs": [] if sources else ["all"], "model": "demo", "sites": ["resid_post"], "seeds": [0], "layers": []},
        suite,
        {name: value for name, value in flags.items() if value is not None},
        every_arch=tuple(ARCHITECTURES),
        hub_models=(set(MODELS) | set(MODELS.values())) - {"demo"},
    )
    if settings.trust_remote_code:
        logging.getLogger(__name__).warning("--trust-remote-code: code that comes with %s runs as you", settings.model)
    progress = Progress(quiet)
    quieten_libraries()
    if not quiet:  # what is done once, and under which licence, is news
        logging.getLogger("sae_bench").setLevel(logging.INFO)
    from sae_bench.leaderboard import tables
    from sae_bench.records.run_folder import RunFolder
    from sae_bench.runs.pipeline import run
    from sae_bench.training.logging import log_sink

    folder = RunFolder(out or Path("runs") / settings.name)
    if dry_run:
        from sae_bench.runs.dry_run import describe_plan

        print(describe_plan(settings, folder))
        return 0
    if extend_tokens and out is None:
        raise UserError("--extend-tokens needs --out, the folder of the run that is to be trained further")
    with folder.locked():
        if overwrite:
            folder.clear()
        else:
            folder.check(settings.identity, extended=extend_tokens)
        with log_sink(log_to, folder.path) as sink:
            records = run(settings, folder, progress, sink)
        if emit:
            from sae_bench.formats.saebench import emit as emit_saebench

            emit_saebench(folder, records)
    print(tables.terminal(records))
    progress.say(f"records and tables: {folder.path}")
    return 1 if tables.failed(records) else 0


VERBS = (ls, table, compare, claims, figures, report, board, explain, verify, export, convert, publish)
for verb in VERBS:
    app.command(verb)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 something failed, 2 a user's mistake, 130 interrupted, 141 unread."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    install_redaction()
    try:
        with stop_signals():
            code = app(arguments, exit_on_error=False, print_error=False)
    except UnusedCliTokensError as error:
        word = (error.unused_tokens or [""])[0]
        code = _complain(f'unknown verb "{word}"{did_you_mean(word, (verb.__name__ for verb in VERBS))}')
    except CycloptsError as error:
        code = _complain(str(error))
    except UserError as error:
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
