"""Evaluation: what a task is, the one pass that feeds all of them, sums by document, standard errors."""
