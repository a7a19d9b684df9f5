"""What ``distillation.py`` measures of finished models."""

from pathlib import Path


def serving(teachers: dict) -> dict:
    return {}


def cascades(folder: Path, runs: dict) -> dict:
    return {}
