"""The traced graph: its record, its nodes, its text."""
