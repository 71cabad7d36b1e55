"""Checks on the host, before any tracing, whose keyword names are the error text.

``positive_integer(batch_size=-1)`` raises "batch_size must be at least 1, got -1". Every check returns
nothing or the one value it had to find out anyway. Shapes and dtypes are known under ``jax.jit`` too, so all checks but
those on values run there as well. Each is made in two rooms at least; a check of one room stands there.
"""

import operator
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core import captured

_PROBABILITY_TOLERANCE = 1e-6  # a sum of float32 probabilities is off by rounding; a mistake, by more
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_LONG = {np.dtype(np.longdouble), np.dtype(np.clongdouble)} - {np.dtype(float), np.dtype(complex)}
_passed: weakref.WeakKeyDictionary[Callable[..., Any], set[Any]] = weakref.WeakKeyDictionary()


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
            raise TypeError(f"{name} must be a pytree of arrays, but {_leaf(name, path)} is {describe(leaf)}")
        if not _is_number(leaf.dtype):
            raise TypeError(f"{name} must be numbers, but {_leaf(name, path)} has dtype {leaf.dtype}")
        if len(leaf.shape) == 0:
            raise ValueError(
                f"{name} must have examples along the first axis of every array, but {_leaf(name, path)} is a scalar"
            )
    lengths = {_leaf(name, path): leaf.shape[0] for path, leaf in leaves}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{leaf} has {length}" for leaf, length in lengths.items())
        raise ValueError(f"{name} must have equally many examples in every array, but {described}")
    length: int = leaves[0][1].shape[0]
    if length == 0:
        raise ValueError(f"{name} must have at least one example, got 0")
    return length


def scalar_loss(
    loss_fn: Callable[..., Any], params: Any, batch: Any, *, key: Any = None, has_aux: bool = False
) -> None:
    """Raise unless ``loss_fn(params, example)`` is one real number for one example of ``batch``.

    An error inside the loss is raised as it is, with a note; only a loss that takes the whole batch is said to be one
    of a batch. With a key, it is ``loss_fn(params, example, key)``; with ``has_aux``, it returns (number, anything).
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function, got {describe(loss_fn)}")
    captured.forget_what_changed(loss_fn, (params, batch))
    shapes = ", ".join(
        f"example{jax.tree_util.keystr(path)}: {leaf.shape[1:]}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    )
    keys = () if key is None else (key,)
    if keys:
        random_key(key=key)
    try:
        out = jax.eval_shape(
            lambda p, b, *keys: loss_fn(p, jax.tree.map(lambda leaf: leaf[0], b), *keys), params, batch, *keys
        )
    except Exception as error:
        if _takes_a_batch(loss_fn, params, batch, *keys):
            raise ValueError(
                f"loss_fn failed on one example ({shapes}), and gives a number for a batch: {type(error).__name__}: "
                f"{error}\nloss_fn takes ONE example, without the batch axis; was it written for a batch?"
            ) from error
        error.add_note(f"loss_fn failed so on one example ({shapes})")
        raise
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(f"loss_fn must return (loss, aux) with has_aux=True, got {jax.tree.structure(out)}")
    out = out[0] if has_aux else out
    if not hasattr(out, "shape"):
        aux = "; has_aux=True is for (loss, aux)" if isinstance(out, tuple) and len(out) == 2 else ""
        raise TypeError(
            f"loss_fn must return one scalar, got {jax.tree.structure(out)} for one example ({shapes}){aux}"
        )
    if out.shape != ():
        raise ValueError(
            f"loss_fn must return a scalar for one example ({shapes}), got shape {out.shape}; "
            "it is given ONE example, without the batch axis"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"loss_fn must return a real floating-point number, got dtype {out.dtype}")


def _takes_a_batch(loss_fn: Callable[..., Any], *arguments: Any) -> bool:
    try:
        out = jax.eval_shape(loss_fn, *arguments)
    except Exception:
        return False
    return getattr(out, "shape", None) == ()


def deterministic(loss_fn: Callable[..., Any], params: Any, batch: Any) -> None:
    """Raise if the loss of an example depends on more than its arguments.

    It is traced twice: what Python or NumPy draw, or a counter that goes on, is a different constant each time. Where
    the traces differ in anything, the values decide. What a cached trace inside the loss hides stays hidden. A loss
    that passed is not traced again for arguments of the same shapes, as long as it exists.
    """
    kind = tuple(
        (jax.tree.structure(tree), *((jnp.shape(leaf)[axes:], _dtype(leaf)) for leaf in jax.tree.leaves(tree)))
        for tree, axes in ((params, 0), (batch, 1))
    )
    try:
        passed = _passed.setdefault(loss_fn, set())
    except TypeError:  # it has no hash or no weak references
        passed = set()
    if kind not in passed:
        _deterministic(loss_fn, params, batch)
        passed.add(kind)


def _deterministic(loss_fn: Callable[..., Any], params: Any, batch: Any) -> None:
    def of_first(params: Any, batch: Any) -> Any:
        return loss_fn(params, jax.tree.map(lambda leaf: leaf[0], batch))

    try:
        first, second = (jax.make_jaxpr(lambda p, b: of_first(p, b))(params, batch) for _ in range(2))
        known = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, batch)))
        if _same(first, second) or not known:
            return
        one, other = (float(jax.jit(lambda p, b: of_first(p, b))(params, batch)) for _ in range(2))
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            "loss_fn must be a function of its arguments alone: it uses a value that an earlier call of it left behind"
        ) from error
    rounding = float(jnp.finfo(first.out_avals[0].dtype).eps) ** 0.5  # type: ignore[no-untyped-call]
    if abs(one - other) > rounding * max(abs(one), abs(other)):
        raise ValueError(
            f"loss_fn must give the same loss for the same arguments, got {one:.6g} and then {other:.6g}; its "
            "randomness must come from a key, such as one for each example in data"
        )


def _dtype(leaf: Any) -> Any:
    return getattr(leaf, "dtype", type(leaf))


def _same(first: Any, second: Any) -> bool:
    """Whether two traces are the same program with the same constants."""
    if _ADDRESS.sub("", str(first.jaxpr)) != _ADDRESS.sub("", str(second.jaxpr)):
        return False
    pairs = zip(first.consts, second.consts, strict=True)
    return all(a is b or (not isinstance(a, jax.core.Tracer) and _equal(a, b)) for a, b in pairs)


def _equal(first: Any, second: Any) -> bool:
    first, second = (
        jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a for a in (first, second)
    )
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))


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
