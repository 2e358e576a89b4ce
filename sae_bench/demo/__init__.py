"""The demo model, from a Python package."""
