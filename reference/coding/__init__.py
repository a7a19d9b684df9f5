"""Coding: weights as shared values, gaps and code words, down to counted bytes."""
