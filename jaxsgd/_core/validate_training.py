"""Checks of runs and of what is measured along them: keyword names are the error text."""

from typing import Any

import numpy as np


def not_all_equal(**named: Any) -> None:
    """Raise unless every vector has two different numbers."""
    for name, values in named.items():
        if np.all(values == values[0]):
            raise ValueError(f"{name} must hold at least two different numbers, got {values.tolist()}")


def increasing(**named: Any) -> None:
    """Raise unless every vector increases strictly."""
    for name, values in named.items():
        if not np.all(np.diff(values) > 0):
            raise ValueError(f"{name} must increase, got {values.tolist()}")


def losses(**named: Any) -> None:
    """Raise if a number of an array is zero or negative; infinite or NaN are those of runs that diverged."""
    for name, values in named.items():
        if np.any(values <= 0):
            raise ValueError(f"{name} must be positive, got {values[values <= 0][0]}")


def hyperbola(fitted: np.ndarray, **named: Any) -> None:
    """Raise unless a fitted hyperbola has positive values."""
    for name, values in named.items():
        if not np.all(fitted > 0):
            raise ValueError(f"{name} must be near a + b/B for batch sizes B, and positive, got {values.tolist()}")
