"""What a loss of one example must be, found out before it is compiled: one real number, of its arguments alone."""

import inspect
import re
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core import captured, validate

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_passed: weakref.WeakKeyDictionary[Callable[..., Any], set[Any]] = weakref.WeakKeyDictionary()


def require_scalar(
    loss_fn: Callable[..., Any], params: Any, batch: Any, *, key: Any = None, has_aux: bool = False
) -> None:
    """Raise unless ``loss_fn(params, example)`` is one real number for one example of ``batch``.

    An error inside the loss is raised as it is, with a note; only a loss that takes the whole batch is said to be one
    of a batch. With a key, it is ``loss_fn(params, example, key)``; with ``has_aux``, it returns (number, anything).
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function, got {validate.describe(loss_fn)}")
    captured.forget_what_changed(loss_fn, (params, batch))
    shapes = ", ".join(
        f"example{jax.tree_util.keystr(path)}: {leaf.shape[1:]}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    )
    keys = () if key is None else (key,)
    if keys:
        validate.random_key(key=key)
    try:
        out = jax.eval_shape(
            lambda p, b, *keys: loss_fn(p, jax.tree.map(lambda leaf: leaf[0], b), *keys), params, batch, *keys
        )
    except Exception as error:
        _require_callable_with(loss_fn, params, batch, *keys)
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


def _require_callable_with(loss_fn: Callable[..., Any], *arguments: Any) -> None:
    """Raise if its arguments are what a loss cannot be called with, rather than anything inside of it."""
    try:
        inspect.signature(loss_fn).bind(*arguments)
    except TypeError as error:
        form = "loss_fn(params, example, key)" if len(arguments) > 2 else "loss_fn(params, example)"
        remedy = (
            "leave key out if it draws nothing" if len(arguments) > 2 else "one that draws is given a key by key=..."
        )
        raise TypeError(
            f"loss_fn must be called as {form}: {error}; {remedy}, and functools.partial binds everything else"
        ) from error
    except ValueError:  # it has no signature
        return


def _takes_a_batch(loss_fn: Callable[..., Any], *arguments: Any) -> bool:
    try:
        out = jax.eval_shape(loss_fn, *arguments)
    except Exception:
        return False
    return getattr(out, "shape", None) == ()


def require_deterministic(loss_fn: Callable[..., Any], params: Any, batch: Any) -> None:
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
