"""`python -m sae_bench`: the command line."""

from sae_bench.cli.main import main

main()
