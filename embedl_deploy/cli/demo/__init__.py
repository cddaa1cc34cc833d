"""The demo: two trained models taken from fp32 to int8, measured, saved and loaded anew."""
