"""`verify`: is a run what it says?"""

from pathlib import Path

from sae_bench.cli.libraries import quieten_libraries


def verify(run: Path, /, *, contexts: int = 16, plugin: list[str] | None = None, quiet: bool = False) -> int:
    """Hash a run's files and its language model again, measure a sample again, and say what does not match.

    Parameters
    ----------
    run
        A run's folder.
    contexts
        Held-out contexts to measure again.
    plugin
        Python files with the architectures and tasks of the run.
    quiet
        Print only what does not match.
    """
    from sae_bench.progress import Progress
    from sae_bench.records.run_folder import RunFolder
    from sae_bench.registry import load_plugins
    from sae_bench.runs.verify import verify as verify_run

    load_plugins(plugin)
    quieten_libraries()
    n_wrong = n_right = 0
    for finding in verify_run(RunFolder(run), Progress(quiet), contexts):
        n_wrong, n_right = n_wrong + bool(finding.problem), n_right + (not finding.problem)
        if finding.problem or not quiet:
            print(f"{finding.what}: {finding.problem or 'as recorded'}")
    print(f"{n_right} as recorded, {n_wrong} not")
    return 1 if n_wrong else 0
