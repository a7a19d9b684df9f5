"""Distillation: train a small model on what a large one predicts."""
