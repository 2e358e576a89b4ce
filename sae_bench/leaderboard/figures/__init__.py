"""Figures of a board, one file each; `draw.FIGURES` lists them. From what a board holds and nothing else."""
