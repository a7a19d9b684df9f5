"""Model compression, derived, run and measured: the code behind the book."""

__version__ = "0.1.0"
