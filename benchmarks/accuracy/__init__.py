"""Accuracy of int8 beside the field's tools, on the same weights and data: ``make accuracy``."""
