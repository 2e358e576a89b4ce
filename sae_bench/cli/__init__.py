"""What the command line does besides the main job: one function a verb, whose docstring is its help."""
