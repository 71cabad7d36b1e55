"""Checks on the host, before any tracing, whose keyword names are the error text.

``positive_integer(batch_size=-1)`` raises "batch_size must be at least 1, got -1". Every check returns
nothing or the one value it had to find out anyway. Shapes and dtypes are known under ``jax.jit`` too, so all checks but
those on values run there as well. Each is made in two rooms at least; a check of one room stands there.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PROBABILITY_TOLERANCE = 1e-6  # a sum of float32 probabilities is off by rounding; a mistake, by more
_LONG_OUTLINE = 200  # characters
_LONG = {np.dtype(np.longdouble), np.dtype(np.clongdouble)} - {np.dtype(float), np.dtype(complex)}


def positive_integer(**named: Any) -> None:
    """Raise unless every value is an integer of at least 1."""
    at_least(1, **named)


def at_least(minimum: int, /, **named: Any) -> None:
    """Raise unless every value is an integer (``bool`` is not one) of at least ``minimum``."""
    for name, value in named.items():
        try:
            integer = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
        if isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if integer < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def at_most(maximum: int, what: str = "", /, **named: int) -> None:
    """Raise if a value is larger than ``maximum``; ``what`` says what that is."""
    for name, value in named.items():
        if value > maximum:
            raise ValueError(f"{name} must be at most {f'{what} {maximum}' if what else maximum}, got {value}")


def enough(needed: int, purpose: str, /, **named: int) -> None:
    """Raise if a value is smaller than what a purpose needs."""
    for name, value in named.items():
        if needed > value:
            raise ValueError(f"{name} must be at least {needed} to {purpose}, got {value}")


def positive(**named: Any) -> None:
    """Raise unless every number, or every number of a tuple, is positive."""
    for name, value in named.items():
        for number in value if isinstance(value, tuple) else (value,):
            if not number > 0:
                raise ValueError(f"{name} must be positive, got {number}")


def positive_if_known(**named: Any) -> None:
    """Raise unless every number of every array is positive, which NaN is not; traced ones are not known."""
    for name, value in named.items():
        if not isinstance(value, jax.core.Tracer):
            values = np.asarray(value, np.float64)
            positive(**{name: tuple(values.ravel().tolist())})


def fraction(**named: Any) -> None:
    """Raise unless every value is strictly between 0 and 1."""
    for name, value in named.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")


def one_of(options: Sequence[str], **named: Any) -> None:
    """Raise unless every value is one of ``options``."""
    for name, value in named.items():
        if value not in options:
            raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")


def random_key(**named: Any) -> None:
    """Raise unless every value is a single JAX random key."""
    for name, value in named.items():
        typed = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        if not typed or value.shape != ():
            raise TypeError(f"{name} must be a key such as jax.random.key(0), got {describe(value)}")


def probabilities(**named: Any) -> None:
    """Raise unless every value is a vector of non-negative numbers that sum to one."""
    for name, value in named.items():
        values = np.asarray(value, dtype=np.float64)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{name} must be a non-empty vector, got shape {values.shape}")
        if not np.all(values >= 0):
            raise ValueError(f"{name} must be non-negative, got {values[~(values >= 0)][0]}")
        if abs(values.sum() - 1) > _PROBABILITY_TOLERANCE:
            raise ValueError(f"{name} must sum to one, got a sum of {values.sum()}")


def finite(**named: Any) -> None:
    """Raise, naming the example, unless every number of every array is finite."""
    for name, value in named.items():
        values = np.asarray(value, dtype=np.float64)
        bad = np.argwhere(~np.isfinite(values))
        if bad.size:
            at = tuple(int(i) for i in bad[0])
            raise ValueError(f"{name} must be finite, got {values[at]} in example {at[0]}")


def finite_rows(examples: Sequence[int] | np.ndarray, where: str, **named: np.ndarray) -> None:
    """Raise, naming the example and the place, unless every matrix with a row for each of ``examples`` is finite."""
    for name, rows in named.items():
        for example, row in zip(examples, rows, strict=True):
            bad = row[~np.isfinite(row)]
            if bad.size:
                raise ValueError(f"{name} must be finite, got {bad[0]} for example {example} in {where}")


def finite_if_known(**named: Any) -> None:
    """Raise, naming the leaf, unless every number of every pytree is finite; traced ones are not known."""
    for name, tree in named.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(leaf, jax.core.Tracer):
                continue
            bad = np.argwhere(~np.isfinite(np.asarray(leaf, np.float64)))
            if bad.size:
                at = tuple(map(int, bad[0]))
                value = np.asarray(leaf, np.float64)[at]
                raise ValueError(f"{name} must be finite, got {value} at {at} in {_leaf(name, path)}")


def labels(**named: Any) -> None:
    """Raise unless every array is a vector of non-negative integers."""
    for name, value in named.items():
        if np.ndim(value) != 1:
            raise ValueError(f"{name} must be a vector of labels, got shape {np.shape(value)}")
        if np.min(value) < 0:
            raise ValueError(f"{name} must be labels 0, 1, 2, ..., got {np.min(value)}")


def consecutive_labels(**named: Any) -> None:
    """Raise unless every value is a non-empty vector of labels 0, 1, ..., k − 1, all of which occur."""
    for name, value in named.items():
        labels_of = np.asarray(value)
        if labels_of.ndim != 1 or labels_of.size == 0:
            raise ValueError(f"{name} must be a non-empty vector of labels, got shape {labels_of.shape}")
        if labels_of.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, got dtype {labels_of.dtype}")
        labels(**{name: labels_of})
        missing = np.flatnonzero(np.bincount(labels_of) == 0)
        if missing.size:
            raise ValueError(f"{name} must use every label from 0 to its largest, but none is {missing[0]}")


def floating_leaves(**named: Any) -> None:
    """Raise unless every leaf of every pytree is a real floating-point array, and there is one."""
    for name, tree in named.items():
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        if not leaves:
            raise ValueError(f"{name} must have at least one array, got {tree!r}")
        for path, leaf in leaves:
            if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
                raise TypeError(
                    f"{name} must be a pytree of arrays, but {_leaf(name, path)} is {describe(leaf)}; {_remedy(leaf)}"
                )
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(
                    f"{name} must be real floating-point arrays, but {_leaf(name, path)} has dtype {leaf.dtype}"
                )


def _remedy(leaf: Any) -> str:
    """What to do about a parameter that is no array."""
    if isinstance(leaf, float):
        return f"write jnp.asarray({leaf!r}), or leave it out of them if it is not to be trained"
    return (
        "for a module that carries functions or settings, differentiate its arrays only, as in "
        "`arrays, static = eqx.partition(model, eqx.is_inexact_array)`"
    )


def leading_axis(**named: Any) -> int:
    """Return the common length of the first axis of every leaf, or raise.

    Args:
        **named: one pytree of arrays.
    """
    ((name, tree),) = named.items()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name} must have at least one array, got {tree!r}")
    for path, leaf in leaves:
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(
                f"{name} must be a pytree of arrays, but {_leaf(name, path)} is {describe(leaf)}{_stacking(tree)}"
            )
        if not _is_number(leaf.dtype):
            raise TypeError(f"{name} must be numbers, but {_leaf(name, path)} has dtype {leaf.dtype}")
        if len(leaf.shape) == 0:
            raise ValueError(
                f"{name} must have examples along the first axis of every array, but {_leaf(name, path)} is a scalar"
                f"{_stacking(tree)}"
            )
    lengths = {_leaf(name, path): leaf.shape[0] for path, leaf in leaves}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{leaf} has {length}" for leaf, length in [*lengths.items()][:8])
        more = ", …" if len(lengths) > 8 else ""
        raise ValueError(
            f"{name} must have equally many examples in every array, but {described}{more}{_stacking(tree)}"
        )
    length: int = leaves[0][1].shape[0]
    if length == 0:
        raise ValueError(f"{name} must have at least one example, got 0")
    return length


def _stacking(tree: Any) -> str:
    """What to do about examples one by one, as a data set gives them, in place of arrays of all of them."""
    alike = isinstance(tree, list) and len(tree) > 1 and len({jax.tree.structure(each) for each in tree}) == 1
    if alike or isinstance(tree, Iterator):
        return "; examples one by one are stacked by jax.tree.map(lambda *leaves: np.stack(leaves), *examples)"
    return ""


def has_method(signature: str, /, **named: Any) -> None:
    """Raise unless every value has a method of the name that ``signature`` begins with."""
    method, _, _ = signature.partition("(")
    for name, value in named.items():
        if not callable(getattr(value, method, None)):
            raise TypeError(f"{name} must have a method {signature}, got {value!r}")


def finite_vector(**named: Any) -> None:
    """Raise unless every value is a non-empty vector of finite numbers."""
    for name, values in named.items():
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{name} must be a non-empty vector, got shape {values.shape}")
        bad = values[~np.isfinite(values.astype(np.float64))]
        if bad.size:
            raise ValueError(f"{name} must be finite, got {bad[0]}")


def one_for_each(count: int, what: str, /, **named: Any) -> None:
    """Raise unless every value has one entry for each of ``count`` things, which are called ``what``."""
    for name, value in named.items():
        if len(value) != count:
            raise ValueError(f"{name} must have one entry for each of the {count} {what}, got {len(value)}")


def like_params(structure: Any, shapes: Sequence[tuple[int, ...]], **named: Any) -> None:
    """Raise unless every value is a pytree with this structure and these leaf shapes."""
    for name, tree in named.items():
        if jax.tree.structure(tree) != structure:
            raise ValueError(f"{name} must have the structure of params, {structure}, got {jax.tree.structure(tree)}")
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        for (path, leaf), shape in zip(leaves, shapes, strict=True):
            if jnp.shape(leaf) != shape:
                raise ValueError(
                    f"{name} must have the shapes of params, but {_leaf(name, path)} has shape "
                    f"{jnp.shape(leaf)}, not {shape}"
                )


def vector(length: int, **named: Any) -> None:
    """Raise unless every value has shape ``(length,)``."""
    for name, value in named.items():
        if jnp.shape(value) != (length,):
            raise ValueError(f"{name} must have shape ({length},), got {jnp.shape(value)}")


def _is_number(dtype: Any) -> bool:
    """Whether JAX has numbers of this dtype: not words, objects, dates, records or long doubles."""
    if dtype in _LONG:
        return False
    return (
        jnp.issubdtype(dtype, jnp.number)
        or jnp.issubdtype(dtype, jnp.bool_)
        or jnp.issubdtype(dtype, jax.dtypes.extended)
    )


def _leaf(name: str, path: Any) -> str:
    return f"{name}{jax.tree_util.keystr(path)}"


def describe(value: Any) -> str:
    """A value in an error message."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return f"{value!r} of type {type(value).__name__}"


def outline(tree: Any) -> str:
    """The structure of a pytree in an error message."""
    text = str(jax.tree.structure(tree))
    return text if len(text) <= _LONG_OUTLINE else f"{text[:_LONG_OUTLINE]}…"
