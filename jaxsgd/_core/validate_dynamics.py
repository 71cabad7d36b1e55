"""Checks of quadratic losses and their dynamics, in the manner of ``validate``: keyword names are the error text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_ROUNDING = 1e-10


def one_matrix_each(**named: Any) -> None:
    """Raise unless the first shape is (N, d, d) and every other (N, d), with N and d at least 1."""
    (name, full), *vectors = named.items()
    if len(full) != 3 or full[1] != full[2] or 0 in full:
        raise ValueError(f"{name} must be one square matrix for each example, shape (N, d, d), got shape {full}")
    for other, its_shape in vectors:
        if its_shape != full[:2]:
            raise ValueError(f"{other} must be one vector for each of the {name}, shape {full[:2]}, got {its_shape}")


def shape(expected: tuple[int, ...], **named: Any) -> None:
    """Raise unless every array has the shape."""
    for name, value in named.items():
        if value.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, got {value.shape}")


def regression(**named: Any) -> None:
    """Raise unless the first shape is (N, d) and the second (N,), with N and d at least 1."""
    (inputs, its_shape), (targets, length) = named.items()
    if len(its_shape) != 2 or 0 in its_shape:
        raise ValueError(f"{inputs} must be one vector for each example, shape (N, d), got shape {its_shape}")
    if length != its_shape[:1]:
        raise ValueError(f"{targets} must be one number for each row of {inputs}, shape {its_shape[:1]}, got {length}")


def symmetric(**named: Any) -> None:
    """Raise, naming the example, unless every matrix is symmetric up to rounding."""
    for name, matrices in named.items():
        asymmetry = np.abs(matrices - matrices.transpose(0, 2, 1)).max(axis=(1, 2))
        bad = np.flatnonzero(asymmetry > _ROUNDING * np.abs(matrices).max(axis=(1, 2)))
        if bad.size:
            raise ValueError(f"{name} must be symmetric, got {matrices[bad[0]].tolist()} in example {bad[0]}")


def positive_definite(**named: Any) -> None:
    """Raise unless every symmetric matrix has positive eigenvalues only, by more than rounding."""
    for name, matrix in named.items():
        eigenvalues = np.linalg.eigvalsh(matrix)
        if not eigenvalues[0] > np.finfo(np.float64).eps * len(matrix) * abs(eigenvalues[-1]):
            raise ValueError(f"{name} must be positive definite, got a smallest eigenvalue of {eigenvalues[0]:.3g}")


def contraction(spectral_radius: float) -> None:
    """Raise unless second moments converge."""
    if not spectral_radius < 1:
        raise ValueError(
            "learning_rate must be below the stability threshold for a stationary law to exist, "
            f"got a spectral radius of {spectral_radius:.6g} for E[A ⊗ A]"
        )


def examples(population_size: int, **named: Sequence[int]) -> None:
    """Raise unless every value is a non-empty sequence of examples 0, …, N − 1."""
    for name, order in named.items():
        outside = [i for i in order if i not in range(population_size)]
        if outside or len(order) == 0:
            got = outside[0] if outside else "none"
            raise ValueError(f"{name} must hold examples from 0 to {population_size - 1}, got {got}")


def below(limit: float, **named: np.ndarray) -> None:
    """Raise unless every number of every array is positive and below the limit."""
    for name, values in named.items():
        bad = values[~((values > 0) & (values < limit))]
        if bad.size:
            raise ValueError(f"{name} must be positive and below {limit:g}, got {bad[0]}")
