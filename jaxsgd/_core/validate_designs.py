"""Checks of the laws of sampling designs, in the manner of ``validate``: keyword names are the error text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsgd._core import validate


def finite_vector(**named: Any) -> None:
    """Raise unless every value is a non-empty vector of finite numbers."""
    for name, values in named.items():
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{name} must be a non-empty vector, got shape {values.shape}")
        bad = values[~np.isfinite(values.astype(np.float64))]
        if bad.size:
            raise ValueError(f"{name} must be finite, got {bad[0]}")


def positive(**named: Any) -> None:
    """Raise unless every number of every value is positive."""
    for name, value in named.items():
        for number in value if isinstance(value, tuple) else (value,):
            if not number > 0:
                raise ValueError(f"{name} must be positive, got {number}")


def non_negative(**named: Any) -> None:
    """Raise unless no number of any value is negative."""
    for name, value in named.items():
        for number in value if isinstance(value, tuple) else (value,):
            if not number >= 0:
                raise ValueError(f"{name} must be non-negative, got {number}")


def between_zero_and_one(**named: Any) -> None:
    """Raise unless every number of every value lies between 0 and 1."""
    for name, value in named.items():
        for number in value if isinstance(value, tuple) else (value,):
            if not 0 <= number <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {number}")


def for_population(population_size: int, **named: Any) -> None:
    """Raise unless every value has one entry for each example of the population."""
    for name, value in named.items():
        if len(value) != population_size:
            raise ValueError(f"{name} must have one entry for each of the {population_size} examples, got {len(value)}")


def for_strata(num_strata: int, **named: Any) -> None:
    """Raise unless every value has one entry for each stratum."""
    for name, value in named.items():
        if len(value) != num_strata:
            raise ValueError(f"{name} must have one entry for each of the {num_strata} strata, got {len(value)}")


def allocation(batch_sizes: Sequence[int], stratum_sizes: Sequence[int]) -> None:
    """Raise unless there is one batch size for each stratum, none larger than its stratum."""
    for_strata(len(stratum_sizes), batch_sizes=batch_sizes)
    for stratum, (drawn, size) in enumerate(zip(batch_sizes, stratum_sizes, strict=True)):
        if drawn > size:
            raise ValueError(f"batch_sizes must be at most {size}, the size of stratum {stratum}, got {drawn}")


def consecutive_labels(**named: Any) -> None:
    """Raise unless every value is a non-empty vector of labels 0, 1, ..., k − 1, all of which occur."""
    for name, value in named.items():
        labels_of = np.asarray(value)
        if labels_of.ndim != 1 or labels_of.size == 0:
            raise ValueError(f"{name} must be a non-empty vector of labels, got shape {labels_of.shape}")
        if labels_of.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, got dtype {labels_of.dtype}")
        validate.labels(**{name: labels_of})
        missing = np.flatnonzero(np.bincount(labels_of) == 0)
        if missing.size:
            raise ValueError(f"{name} must use every label from 0 to its largest, but none is {missing[0]}")


def divides(*, batch_size: int, population_size: int) -> None:
    """Raise unless the batch size divides the population size."""
    if population_size % batch_size:
        raise ValueError(f"batch_size must divide the population size {population_size}, got {batch_size}")
