"""A synthetic world: activations made of known features, so that what an SAE found can be held against them."""
