"""Text to calibrate and to evaluate on: shipped, from files, or from the hub."""
