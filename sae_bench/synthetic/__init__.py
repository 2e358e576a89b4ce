"""A synthetic world: activations made of features that are known, so that what an SAE found can be held against them."""
