"""Checks of a loss by evaluating it, in the manner of ``validate``: that it is a function, and finite."""

import re
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_passed: weakref.WeakKeyDictionary[Callable[..., Any], set[Any]] = weakref.WeakKeyDictionary()


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


def finite_gradients(moments: Any, loss_fn: Callable[..., Any], params: Any, batch: Any) -> None:
    """Raise, naming the first example and the parameter, unless some ``moments`` of all gradients are finite."""
    leaves = jax.tree.leaves(moments)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) or all(jnp.isfinite(leaf).all() for leaf in leaves):
        return
    gradient = jax.jit(jax.grad(loss_fn))
    for example in range(len(jax.tree.leaves(batch)[0])):
        found = gradient(params, jax.tree.map(lambda leaf, i=example: leaf[i], batch))
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            rows = np.asarray(leaf, np.float64).reshape(1, -1)
            finite_rows(rows, path=jax.tree_util.keystr(path), examples=np.asarray([example]))
    raise ValueError(
        f"squared gradient norms overflow {leaves[-1].dtype}: scale the loss down, or use float64 parameters"
    )


def finite_rows(rows: np.ndarray, *, path: str, examples: np.ndarray) -> None:
    """Raise, naming example and parameter, unless the gradients of some examples, as rows, are finite."""
    for example, row in zip(examples, rows, strict=True):
        bad = row[~np.isfinite(row)]
        if bad.size:
            raise ValueError(f"gradients must be finite, got {bad[0]} for example {example} in params{path}")
