"""Losses with a key of their own for each example, or with auxiliary output, as the engine takes them: one number each.

They are equal for equal losses, so that nothing is compiled anew where they are written anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxsgd._core import devices, validate
from jaxsgd._core.sums import varying_axes, varying_like


@dataclass(frozen=True)
class KeyedLoss:
    """The loss of an example and its key."""

    loss_fn: Callable[..., Any]

    def __call__(self, params: PyTree, example: tuple[PyTree, Array]) -> Any:
        return self.loss_fn(params, *example)


@dataclass(frozen=True)
class WithoutAux:
    """The first of what a loss returns."""

    loss_fn: Callable[..., Any]

    def __call__(self, params: PyTree, example: PyTree) -> Any:
        return self.loss_fn(params, example)[0]


def with_keys(loss_fn: Callable[..., Any], batch: PyTree, key: Array | None, first: int = 0) -> tuple[Any, PyTree]:
    """The loss and the batch with a key for each example, fold_in(key, i) of its index; the same if there is no key.

    Args:
        loss_fn: ``loss_fn(params, example, key)`` if there is a key.
        batch: n examples.
        key: a random key, or None.
        first: the index of the first of the examples in the data.
    """
    if key is None:
        return loss_fn, batch
    count = validate.leading_axis(batch=batch)
    return KeyedLoss(loss_fn), (batch, devices.beside(batch, _keys(key, batch, count, first)))


def _keys(key: Array, batch: PyTree, count: int, first: int) -> Array:
    """Inside ``jax.shard_map`` the examples of each device have indices of their own."""
    indices = first + jnp.arange(count, dtype=jnp.int32)
    axes = tuple(sorted(varying_axes(batch) - varying_axes(key)))
    if axes:
        return _folded(varying_like(batch, key), jax.lax.axis_index(axes) * count + indices)
    return _folded(key, indices)


@jax.jit
def _folded(key: Array, indices: Array) -> Array:
    keys: Array = jax.vmap(partial(jax.random.fold_in, key))(indices)
    return keys
