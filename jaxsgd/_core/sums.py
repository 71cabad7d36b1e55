"""Sums over examples: how precise, how many examples at a time; no rounding that grows with n."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

einsum = partial(jnp.einsum, precision="highest")


def accumulation_dtype(*arrays: Any) -> Any:
    """The widest dtype of floating-point arrays, float32 at least: what their sums are accumulated in."""
    return max((jnp.float32, *(array.dtype for array in arrays)), key=lambda dtype: jnp.dtype(dtype).itemsize)


def accumulated(array: Array) -> Array:
    """The array in the dtype that its sums are accumulated in."""
    return array.astype(accumulation_dtype(array))


def total(parts: Sequence[Array]) -> Array:
    """The sum of arrays whose dtypes may differ."""
    dtype = accumulation_dtype(*parts)
    return sum((part.astype(dtype) for part in parts[1:]), parts[0].astype(dtype))


_PRODUCTS_AT_A_TIME = {"cpu": 2**18}  # on a CPU one matrix product after the other, but for the smallest
_PRODUCTS_ON_ACCELERATORS = 2**31  # what fills the device


def examples_at_a_time(products: int) -> int:
    """How many examples that take so many multiplications each to work on together on this backend."""
    budget = _PRODUCTS_AT_A_TIME.get(jax.default_backend(), _PRODUCTS_ON_ACCELERATORS)
    return max(1, budget // max(products, 1))


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum of two numbers, and what rounding took from it (D. E. Knuth; Dekker, 1971)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def squared_norm(tree: Any) -> Array:
    """‖v‖² of a pytree v."""
    return total([jnp.sum(accumulated(leaf) ** 2) for leaf in jax.tree.leaves(tree)])


def inner(a: Any, b: Any) -> Array:
    """⟨a, b⟩ of two pytrees."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return total([jnp.sum(accumulated(x) * accumulated(y)) for x, y in pairs])


def chunked(arrays: Any, size: int) -> tuple[Any, Any]:
    """Arrays with a leading axis of n as (n // size, size, ...), and the last n % size entries, or None."""
    count = len(jax.tree.leaves(arrays)[0])
    whole = count // size * size
    some = jax.tree.map(lambda a: a[:whole].reshape(count // size, size, *a.shape[1:]), arrays)
    return some, None if whole == count else jax.tree.map(lambda a: a[whole:], arrays)


def average(rows: Float[Array, "n p"]) -> Float[Array, " p"]:
    """The mean row, as a matrix product: XLA's CPU backend reduces over a leading axis one stride at a time."""
    count = rows.shape[0]
    return in_blocks(lambda rows: einsum("n,np->p", jnp.full(len(rows), 1 / count, rows.dtype), rows), rows)


def in_blocks(function: Callable[[Any], Array], arrays: Any) -> Array:
    """A sum over examples as the sum of sums over blocks of them, so that rounding does not grow with their number."""
    some, rest = chunked(arrays, LARGEST_BLOCK)
    if len(jax.tree.leaves(arrays)[0]) <= LARGEST_BLOCK:
        return function(arrays)
    total = jax.lax.map(function, some).sum(axis=0)
    return total if rest is None else total + function(rest)


def mean_of_each(function: Callable[[Any], Array], arrays: Any) -> Array:
    """The mean of a number of every example, of so many at a time that memory does not grow with all of them."""
    size = min(LARGEST_BLOCK, len(jax.tree.leaves(arrays)[0]))
    return jax.lax.map(function, arrays, batch_size=size).mean()


def varying_like(arrays: Any, tree: Any) -> Any:
    """The tree, varying over the axes of ``jax.shard_map`` that the arrays vary over.

    With respect to parameters that do not vary, ``jax.grad`` inside ``shard_map`` is the sum over all devices; and what
    a loop carries must vary from the start.
    """
    axes = varying_axes(arrays)

    def cast(leaf: Any) -> Any:
        missing = tuple(sorted(axes - varying_axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def varying_axes(tree: Any) -> frozenset[str]:
    """The axes of ``jax.shard_map`` that any of the arrays varies over."""
    leaves = jax.tree.leaves(tree)
    return frozenset[str]().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves))


LARGEST_BLOCK = 4096
