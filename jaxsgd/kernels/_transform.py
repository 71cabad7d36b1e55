"""The transformation itself: from a loss to a function that gives the gradients of a batch, and what checks them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsgd._core import arrays, loss_functions, units, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.kernels._gradients import Loss, PerExampleGradients, trace_batch, trace_batch_with_aux
from jaxsgd.kernels._loss import WithoutAux, with_keys
from jaxsgd.kernels._range import require_squares
from jaxsgd.kernels._recomputed import recomputed, recomputed_with_aux
from jaxsgd.kernels.factors import Dense


def per_example_gradients(
    loss_fn: Loss, *, memory_limit: int | None = None, has_aux: bool = False
) -> Callable[..., Any]:
    """Transform the loss of one example into the per-example gradients of a batch.

    Args:
        loss_fn: ``loss_fn(params, example) -> scalar``, of ONE example: a pytree like the batch without its first axis.
        memory_limit: how many bytes what is kept of the gradients may take; no limit by default. Where the batch needs
            more, every statistic computes the gradients anew, as many examples at a time as the limit allows.
        has_aux: for a loss that returns ``(scalar, aux)``: gradients, and aux with a leading axis of n, are returned.

    Returns:
        A function of ``params`` and ``batch`` (pytree of arrays with n examples along the first axis of each), that
        returns :class:`PerExampleGradients` and works under ``jax.jit`` and ``jax.vmap``. With ``key=``, the loss is
        ``loss_fn(params, example, key)``, and example i has the key fold_in(key, i).

    Raises:
        TypeError, ValueError: if ``params`` are no floating-point arrays, ``batch`` no arrays of numbers of one length,
            the loss is not one real number, or written for a batch (another error inside it is raised as it is), or if
            ``memory_limit`` is less than one example needs.

    Guarantees:
        - the same on any number of devices, up to rounding: what is kept of an example stays where it is.
        - compiles once for one ``loss_fn`` and the same shapes; anew, with a warning, where what it reads has changed.

    >>> import jax.numpy as jnp
    >>> def loss_fn(params, example):
    ...     return (example["y"] - params["m"] * example["x"] - params["b"]) ** 2
    >>> params = {"m": jnp.asarray(1.0), "b": jnp.asarray(1.0)}
    >>> batch = {"x": jnp.asarray([0.0, 1.0, 2.0, 3.0]), "y": jnp.asarray([1.0, 3.0, 2.0, 5.0])}
    >>> g = per_example_gradients(loss_fn)(params, batch)
    >>> g.count, [float(norm) for norm in g.squared_norms()]
    (4, [0.0, 8.0, 20.0, 40.0])
    """
    if memory_limit is not None:
        validate.positive_integer(memory_limit=memory_limit)

    kept, anew = (trace_batch_with_aux, _recomputed_with_aux) if has_aux else (trace_batch, _recomputed)

    @partial(on_any_mesh, per_example=True)
    def gradients(params: PyTree, batch: PyTree, key: Array | None = None) -> Any:
        validate.floating_leaves(params=params)
        batch = arrays.readable(batch=batch)
        count = validate.leading_axis(batch=batch)
        loss_functions.require_scalar(loss_fn, params, batch, key=key, has_aux=has_aux)
        loss, batch = with_keys(loss_fn, batch, key)
        if memory_limit is None:
            return kept(loss, params, batch)
        chunk_size = _examples_within(memory_limit, WithoutAux(loss) if has_aux else loss, params, batch, count)
        if chunk_size == count:
            return kept(loss, params, batch)
        return anew(loss, params, batch, chunk_size)

    return gradients


_recomputed = partial(jax.jit, static_argnums=(0, 3))(recomputed)
_recomputed_with_aux = partial(jax.jit, static_argnums=(0, 3))(recomputed_with_aux)


def _examples_within(memory_limit: int, loss_fn: Loss, params: PyTree, batch: PyTree, count: int) -> int:
    """Of how many examples at a time the factored gradients take no more than the limit."""

    def bytes_kept(size: int) -> int:
        def of_some(params: PyTree, batch: PyTree) -> PerExampleGradients:
            return trace_batch(loss_fn, params, jax.tree.map(lambda leaf: leaf[:size], batch))

        kept = jax.eval_shape(of_some, params, batch)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))

    of_all = bytes_kept(count)
    if of_all <= memory_limit:
        return count
    of_one = bytes_kept(1)
    if of_one > memory_limit:
        raise ValueError(f"memory_limit must be at least {of_one} bytes, which one example needs, got {memory_limit}")
    of_each_more = -(-(of_all - of_one) // (count - 1))
    return min(count - 1, 1 + (memory_limit - of_one) // of_each_more)


@on_any_mesh
def require_finite(g: PerExampleGradients, first_index: int = 0) -> None:
    """Raise ValueError, naming the example and the parameter, if a gradient is not finite.

    Args:
        g: concrete gradients; under a transformation, where values are unknown, nothing is checked.
        first_index: the index of the first example of ``g`` in the data, for the message.

    Raises:
        TypeError: if ``g`` is something else.
    """
    if not isinstance(g, PerExampleGradients):
        raise TypeError(f"g must be what per_example_gradients returns, got {validate.describe(g)}")
    norms = g.squared_norms()
    if isinstance(norms, jax.core.Tracer):
        return
    if jnp.isfinite(norms).all() and np.isfinite(float(norms.max())):  # a maximum over devices may lose a NaN
        require_squares(g, norms)
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(g.materialize()):
        index, value = _first_not_finite(leaf) if leaf.size else (0, 0.0)
        if not np.isfinite(float(value)):
            raise ValueError(
                f"gradients must be finite, got {value} for example {first_index + int(index)} "
                f"in params{jax.tree_util.keystr(path)}"
            )
    raise ValueError(f"squared gradient norms overflow {norms.dtype}: scale the loss down, or use float64 parameters")


@on_any_mesh
def unit(g: PerExampleGradients) -> Float[Array, ""]:
    """A power of two near the largest ‖g_i‖, for gradients that :func:`require_finite` accepts.

    Products of four gradients, which leave float32 from 1e9 on and below 1e-10, are taken in it.
    """
    return units.near(jnp.sqrt(g.squared_norms()))


@jax.jit
def _first_not_finite(leaf: Float[Array, "n ..."]) -> tuple[Array, Array]:
    """The first example with a number that is not finite, and that number; examples may lie on any devices."""
    rows = leaf.reshape(len(leaf), -1)
    index = jnp.argmax(~jnp.isfinite(rows).all(axis=1))
    return index, rows[index][jnp.argmax(~jnp.isfinite(rows[index]))]


@on_any_mesh
def centered_gram(g: PerExampleGradients) -> Float[Array, "n n"]:
    """K_ij = ⟨g_i − ḡ, g_j − ḡ⟩, shape (n, n), from centered gradients, so that no digit cancels.

    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Raises:
        ValueError: if n² numbers are more than memory holds, before any is computed.
    """
    return g.centered_gram()


@on_any_mesh
def is_cheaply_factored(loss_fn: Loss, params: PyTree, batch: PyTree) -> bool:
    """Whether what is formed for every example is small: biases and the like.

    A heuristic: parameters that stay dense are at most an eighth of all, or few. Each of them costs as many numbers as
    the batch has examples, which a plain gradient does not write.
    """
    g = jax.eval_shape(partial(trace_batch, loss_fn), params, batch)
    dense = sum(leaf.size for leaf, f in zip(jax.tree.leaves(params), g.factors, strict=True) if isinstance(f, Dense))
    return dense <= max(g.num_params // 8, 1024)
