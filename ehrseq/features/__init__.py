"""Tabular summaries of visible history."""
