"""One file for each way to score an explanation; `known` has them all by name."""
