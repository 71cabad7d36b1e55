"""Checks of runs and of what is measured along them: keyword names are the error text."""

from collections.abc import Container
from typing import Any

import numpy as np
import optax


def hashable(**named: Any) -> None:
    """Raise unless every value can be hashed, as what a compilation is kept for."""
    for name, value in named.items():
        try:
            hash(value)
        except TypeError as error:
            raise TypeError(f"{name} must be hashable, as frozen dataclasses and functions are: {error}") from None


def optimizer(optimizer: Any, *, tuned: bool) -> None:
    """Raise unless it is an Optax transformation, or a function of the learning rate where there are learning rates."""
    if isinstance(optimizer, optax.GradientTransformation):
        return
    if not callable(optimizer):
        raise TypeError(f"optimizer must be an Optax transformation, or a function that makes one, got {optimizer!r}")
    if not tuned:
        raise ValueError(
            "optimizer must be an Optax transformation, such as optax.sgd(0.1); a function that makes one from a "
            f"learning rate needs learning_rates, got {optimizer!r}"
        )


def made(optimizer: Any) -> None:
    """Raise unless what a function made of a learning rate is an Optax transformation."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must make an Optax transformation from a learning rate, got {optimizer!r}")


def hyperparameter(name: str, *, found: bool) -> None:
    """Raise unless an optimizer's state has the hyperparameter that is to be varied."""
    if not found:
        raise ValueError(
            f"optimizer must be a function of the learning rate, or have the hyperparameter {name} in its state, as "
            "optax.inject_hyperparams gives it"
        )


def rates(**named: Any) -> None:
    """Raise unless every value is a non-empty vector of finite numbers."""
    for name, value in named.items():
        values = np.asarray(value, np.float64)
        if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
            raise ValueError(f"{name} must be a non-empty vector of finite numbers, got {value!r}")


def names_of(metrics: Any, *, taken: Container[str]) -> None:
    """Raise unless an evaluation is one number or a dict of numbers with names of its own."""
    for name, value in metrics.items():
        if not isinstance(name, str) or name in taken:
            raise ValueError(f"eval_fn must name its metrics by strings other than those of the run, got {name!r}")
        if getattr(value, "shape", None) != ():
            raise ValueError(f"eval_fn must return one number or a dict of numbers, got {value!r} for {name}")


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
