"""Training: the shuffle buffer of activations, one trainer an SAE, one loop for all, checkpoints."""
