"""Checks of runs and of what is measured along them: keyword names are the error text."""

from collections.abc import Container, Mapping, Sequence
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


def grid(grid: Any) -> None:
    """Raise unless it is a mapping of names to non-empty sequences of different plain values."""
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"grid must map at least one name to its values, got {grid!r}")
    for name, values in grid.items():
        if name == "key":
            raise ValueError("grid must not have the name 'key', which is that of the cell's random key")
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ValueError(f"grid must have a non-empty list of values for {name}, got {values!r}")
        for value in values:
            if not isinstance(value, str | int | float):
                raise TypeError(f"grid must hold numbers, strings and booleans, got {value!r} for {name}")
        if len(set(values)) < len(values):
            raise ValueError(f"grid must hold different values, got {values!r} for {name}")


def results(found: Any) -> None:
    """Raise unless a cell's results are a mapping."""
    if not isinstance(found, Mapping) or not found:
        raise TypeError(f"run must return a RunResult or a non-empty dict of arrays, got {found!r}")


def dimensions(name: str, dims: Any, ndim: int) -> None:
    """Raise unless there is one dimension name for each axis."""
    if isinstance(dims, str) or len(dims) != ndim:
        raise ValueError(f"run must name the {ndim} dimensions of {name}, got {dims!r}")


def equal_shapes(name: str, values: Sequence[Any]) -> None:
    """Raise unless all cells have a result, of one shape."""
    shapes = {None if value is None else value.shape for value in values}
    if len(shapes) > 1:
        raise ValueError(f"run must return arrays of one shape in all cells, got {name} of shapes {shapes}")


def free_names(dims: Sequence[str], *, taken: Container[str]) -> None:
    """Raise if a dimension of a result has the name of one of the grid."""
    for dim in dims:
        if dim in taken:
            raise ValueError(f"run must not return dimensions with names of the grid, got {dim}")


def equal_values(name: str, values: Sequence[Any]) -> None:
    """Raise unless the coordinates of a dimension are the same in all cells."""
    if not all(np.array_equal(value, values[0]) for value in values):
        raise ValueError(f"run must return the same coordinates {name} in all cells")


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
