"""Quantisation: grids, round to nearest, and the solvers built on them."""
