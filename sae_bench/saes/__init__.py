"""What a sparse autoencoder is: base class, active sets, their layouts, saving."""
