"""The stages of a run, and what else is done with a run's folder."""
