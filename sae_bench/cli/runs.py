"""`export`, `convert`, `publish`, `submit`: a run for other tools and other people; `verify`: is it what it says?"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

Format = Literal["saelens", "dictionary_learning", "gemma-scope", "gemma-scope-2", "sparsify", "neuronpedia"]
Run = Annotated[Path, Parameter(help="A run's folder.")]
Wanted = Annotated[list[str] | None, Parameter(name="--sae", help="SAEs, by their names in the run. Default: all.")]
Plugins = Annotated[list[str] | None, Parameter(help="Python files with the architectures and tasks of the run.")]


def export(
    run: Run,
    /,
    *,
    form: Annotated[Format, Parameter(name="--format")],
    out: Path,
    sae: Wanted = None,
    plugin: Plugins = None,
) -> int:
    """Write a run's SAEs in another tool's format.

    Args:
        form: saelens, dictionary_learning, gemma-scope and gemma-scope-2 (what is a jumprelu once trained: batchtopk
            and matryoshka too), sparsify (topk alone); neuronpedia: not weights, but what was collected of latents.
        out: Where to: a folder below it for each SAE.
    """
    from sae_bench.formats import neuronpedia
    from sae_bench.formats.export import export as export_run
    from sae_bench.registry import load_plugin

    load_plugin(*plugin or ())
    if form == neuronpedia.FORMAT:
        folders = neuronpedia.export(run, out, sae or ())
    else:
        folders = export_run(run, form, out, sae or ())
    for written in folders:
        print(written)
    return 0


def convert(
    run: Run,
    /,
    *,
    to: Literal["jumprelu", "gated"],
    out: Path,
    sae: Wanted = None,
    calibration_tokens: int = 16384,
    eval_tokens: int = 8192,
    plugin: Plugins = None,
    quiet: bool = False,
) -> int:
    """Turn a run's SAEs into jumprelu or gated ones, and print what that costs.

    gated, relu and jumprelu turn into each other exactly; topk gets one calibrated threshold.

    Args:
        to: jumprelu or gated.
        out: A new folder, which --sae takes.
        calibration_tokens: Training tokens that a topk's threshold is calibrated on.
        eval_tokens: Held-out tokens that both are measured on.
        quiet: Print the costs alone.
    """
    from sae_bench.progress import Progress
    from sae_bench.registry import load_plugin
    from sae_bench.runs.convert import convert_run

    load_plugin(*plugin or ())
    quieten_libraries()
    print(convert_run(run, to, out, sae or (), calibration_tokens, eval_tokens, Progress(quiet)))
    return 0


def submit(
    folder: Annotated[Path, Parameter(help="A run's or a board's folder, which may be a stranger's.")],
    /,
    *,
    name: str | None = None,
    results: Path = Path("results"),
    weights: str | None = None,
    sample: Annotated[int, Parameter(validator=Number(gte=1))] = 3,
    seed: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    without_measuring: bool = False,
    quiet: bool = False,
) -> int:
    """Check a board as a reviewer would, measure a sample of its SAEs again, and write it as results/ takes it.

    Args:
        name: The board's folder below results. Default: that of the given folder.
        results: Where boards are.
        weights: Where the SAEs are: a run's folder, or hf:owner/repo. Default: in the given folder.
        sample: How many SAEs to measure again, on all held-out tokens.
        seed: Which ones. Default: drawn, so that nobody knows before; the statement says it.
        without_measuring: Write the board with a statement that nothing was measured again.
        quiet: Print no progress.
    """
    from sae_bench.progress import Progress
    from sae_bench.runs.submit import next_steps
    from sae_bench.runs.submit import submit as submit_board

    quieten_libraries()
    out, statement = submit_board(
        folder, results, name, weights=weights, sample=sample, seed=seed, without_measuring=without_measuring,
        progress=Progress(quiet),
    )  # fmt: skip
    print(next_steps(out, statement))
    return 0


def publish(run: Run, /, *, repo: str, board: str | None = None, private: bool = False, dry_run: bool = False) -> int:
    """Upload a run to the Hugging Face hub: weights, records, board and a model card.

    Args:
        repo: owner/name; made if there is none.
        board: The board of these SAEs, by its name in results: the card and a tag say so.
        private: Make it private.
        dry_run: Print the files and the card, and upload nothing.
    """
    from sae_bench.formats.hub import upload
    from sae_bench.runs.publish import collect

    files = collect(run, repo, board)
    if dry_run:
        for name, content in sorted(files.items()):
            n_bytes = len(content) if isinstance(content, bytes) else content.stat().st_size
            print(f"{n_bytes:>14,}  {name}")
        card = files["README.md"]
        assert isinstance(card, bytes), "it is made, not read"
        print(f"\n{card.decode()}")
        return 0
    print(upload(repo, files, f"sae-arch-bench: {run.name}", private=private))
    return 0


def verify(run: Run, /, *, contexts: int = 16, plugin: Plugins = None, quiet: bool = False) -> int:
    """Hash a run's files and its language model again, measure a sample again, and say what does not match.

    Args:
        contexts: Held-out contexts to measure again.
        quiet: Print only what does not match.
    """
    from sae_bench.progress import Progress
    from sae_bench.records.run_folder import RunFolder
    from sae_bench.registry import load_plugin
    from sae_bench.runs.verify import verify as verify_run

    load_plugin(*plugin or ())
    quieten_libraries()
    n_wrong = n_right = 0
    for what, problem in verify_run(RunFolder(run), Progress(quiet), contexts):
        n_wrong, n_right = n_wrong + bool(problem), n_right + (not problem)
        if problem or not quiet:
            print(f"{what}: {problem or 'as recorded'}")
    print(f"{n_right} as recorded, {n_wrong} not")
    return 1 if n_wrong else 0


def quieten_libraries() -> None:
    """Leave the screen to our own progress; libraries' warnings go to the log."""
    import transformers
    from datasets.utils.logging import disable_progress_bar

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    disable_progress_bar()
