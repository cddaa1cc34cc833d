"""Lowering: a graph is cut into convex subgraphs, each built by an engine, and stitched."""
