"""The targets: one table each, and the registry that finds them."""
