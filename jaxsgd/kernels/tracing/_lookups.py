"""Rules of tables from which every example takes some rows: embeddings, positions, experts."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd.kernels.factors import Rows, wide
from jaxsgd.kernels.tracing._jaxpr import Operation, Value
from jaxsgd.kernels.tracing._recipe import NoRule, Recipe, recipe_of, rows_of, rule
from jaxsgd.kernels.tracing._sums import added


@rule("scatter-add", named=True)
def _scatter_add(value: Value, operation: Operation) -> Recipe:
    """Rows added to a table of zeros, by an index for each of its leading axes, as the gradient of a look-up does.

    Along the axes of a row, which is taken whole, an index can only be 0.
    """
    table, indices, updates = operation.inputs
    numbers, clip = operation.params["dimension_numbers"], jax.lax.GatherScatterMode.CLIP
    mode, shape, window = operation.params["mode"], value.shape, numbers.update_window_dims
    inserted, indexed = numbers.inserted_window_dims, numbers.scatter_dims_to_operand_dims
    if numbers.operand_batching_dims:
        raise NoRule("scatter-add along an axis of its own")
    taken = iter(updates.shape[axis] for axis in window)
    sizes = [1 if axis in inserted else next(taken) for axis in range(len(shape))]
    leading = _leading(sizes, shape, inserted)
    if any(sizes[axis] != 1 or axis not in indexed for axis in range(leading)):
        raise NoRule("scatter-add of anything but whole rows")
    ends = np.array([[shape[axis] - sizes[axis] for axis in indexed]])
    positions = [axis for axis in range(len(updates.shape)) if axis not in window]

    def build(indices: Any, updates: Any) -> Rows:
        at = wide(indices.reshape(-1, len(indexed)))
        last = jnp.asarray(ends, at.dtype)
        if mode == clip:
            at = jnp.clip(at, 0, last)
        inside = jnp.all((at >= 0) & (at <= last), axis=1)
        row = _flat([at[:, indexed.index(axis)] for axis in range(leading)], shape, inside)
        rows = updates.transpose((*positions, *window)).reshape(len(inside), -1)
        rows = jnp.where(inside[:, None], rows, jnp.zeros((), rows.dtype))  # not 0 · NaN
        return Rows(row, rows, shape, leading)

    return added([recipe_of(table), rows_of((indices, updates), build, shape, leading)])


@rule("dynamic_update_slice", named=True)
def _update_slice(value: Value, operation: Operation) -> Recipe:
    """Whole rows, one after the other, written into a table of zeros, as the gradient of a look-up of one row does."""
    table, rows, *starts = operation.inputs
    shape, leading = value.shape, _leading(rows.shape, value.shape)
    if recipe_of(table).values or leading == 0 or any(size != 1 for size in rows.shape[: leading - 1]):
        raise NoRule("dynamic_update_slice of anything but whole rows")
    count = rows.shape[leading - 1]

    def build(rows: Any, *starts: Any) -> Rows:
        first = [jnp.clip(wide(at), 0, size - own) for at, size, own in zip(starts, shape, rows.shape, strict=False)]
        row = _flat(first, shape, jnp.ones(count, bool)) + jnp.arange(count, dtype=first[0].dtype)
        return Rows(row, rows.reshape(count, -1), shape, leading, are_distinct=True)

    return rows_of((rows, *starts[:leading]), build, shape, leading)


def _leading(sizes: Sequence[int], shape: Sequence[int], inserted: Sequence[int] = ()) -> int:
    """How many axes there are until all others are taken whole."""
    return max((axis + 1 for axis, size in enumerate(sizes) if size != shape[axis] or axis in inserted), default=0)


def _flat(indices: Sequence[Any], shape: tuple[int, ...], inside: Any) -> Any:
    """One number for the indices of all leading axes; that of no row where they are outside."""
    dtype = indices[0].dtype if indices else jnp.dtype("int32")
    flat = jnp.zeros((), dtype)
    for index, size in zip(indices, shape, strict=False):
        flat = flat * size + index
    return jnp.where(inside, flat, jnp.asarray(math.prod(shape[: len(indices)]), dtype))
