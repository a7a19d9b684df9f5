"""Pruning: which weights to remove, and masks that keep them removed."""
