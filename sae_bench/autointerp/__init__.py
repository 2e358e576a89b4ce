"""Automated interpretability: examples of sampled latents, a judge that explains and scores them, its budget."""
