"""Rows of any source become rendered samples, a pack plan, and packed batches."""
