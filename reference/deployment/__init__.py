"""Deployment: what it takes to run a compressed model, how it is served, and how it is rolled out."""
