"""Probing: labelled texts, and probes on what a model or an SAE makes of them."""
