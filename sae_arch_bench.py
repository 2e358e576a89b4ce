"""The command `sae-arch-bench`, from a module whose name is ours alone: SAEBench's package is called `sae_bench`, too.

Where both are in one environment, whichever Python finds first is `sae_bench`, and files of both may lie in one folder.
This module is what is still found then, and says so.
"""

import sys

TAKEN = (
    "SAEBench's package, sae-bench, stands in this environment in the place of sae-arch-bench's: both are imported as "
    "sae_bench. Give each an environment of its own; in this one run: pip uninstall sae-bench sae-arch-bench, then "
    "install the one that you want"
)


def main() -> None:
    """Run the command line."""
    try:
        from sae_bench import UserError  # noqa: F401 - a name of our __init__, which theirs would have replaced
        from sae_bench.cli.main import main as command_line
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "sae_bench":
            raise
        print(f"error: {TAKEN}", file=sys.stderr)
        sys.exit(2)
    command_line()


if __name__ == "__main__":
    main()
