"""Measures models, and chooses what runs them."""
