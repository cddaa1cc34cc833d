"""Turns records into text and tables; decides nothing."""
