"""Rules that move outliers from activations into weights."""
