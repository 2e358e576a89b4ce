"""Other people's SAE files, translated at the border: one file a format, which reads it and writes it.

Whatever was trained elsewhere becomes a built-in architecture that takes raw activations, so that nothing behind this
folder knows where an SAE is from.
"""
