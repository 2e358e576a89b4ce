"""The harness from Python, as first-class as the command line."""
