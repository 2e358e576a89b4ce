"""Language model and text: loading, capture and replay, sites, losses, ablations, corpora, tokens."""
