"""Vocabulary and batches for the sequence model."""
