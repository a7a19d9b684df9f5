"""Model compression, derived, run and measured: the code behind the book."""
