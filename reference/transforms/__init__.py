"""Changes of a block that keep its function and make it easier to quantise."""
