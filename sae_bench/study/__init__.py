"""The manual study: people, blind to the SAE, say whether latents are interpretable, and what they mean."""
