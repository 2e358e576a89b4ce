"""One file for each way to score an explanation, found by name: `SCORERS[name]`."""
