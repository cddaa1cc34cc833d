"""A graph-rewriting compiler that takes trained PyTorch models to their targets."""
