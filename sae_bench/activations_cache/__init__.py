"""Activations kept on the disk: captured once, and read by every later run that would capture the same."""
