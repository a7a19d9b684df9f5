"""From a compressed model to one that serves: what it needs, how fast it can be, and what it loses."""
