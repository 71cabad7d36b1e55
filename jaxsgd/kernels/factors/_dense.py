"""Per-example gradients as they are, for parameters whose gradients have no cheaper form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsgd._core.sums import LARGEST_BLOCK, accumulated, average, chunked, einsum, in_blocks, varying_like
from jaxsgd.kernels.factors._factor import Factor, Flops


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense(Factor):
    """The gradients themselves: ``value``, shape (n, *shape); ``why`` no cheaper form was found.

    ``to_form`` is how many floating-point operations it takes to form them, where they are not what a gradient takes.
    ``summary`` is (Σ g_i or None, ‖g_i‖²) where they are known already.
    """

    value: Any
    why: str = field(default="", metadata={"static": True})
    to_form: int = field(default=0, metadata={"static": True})
    summary: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape[1:])

    def _rows(self) -> Float[Array, "n p"]:
        return accumulated(self.value).reshape(self.count, -1)

    def weighted_sum(self, weights: Float[Array, " n"]) -> Array:
        rows = self._rows()
        return in_blocks(lambda both: einsum("n,np->p", *both), (weights.astype(rows.dtype), rows)).reshape(self.shape)

    def scaled(self, scales: Float[Array, " n"]) -> "Dense":
        rows = self._rows()
        return Dense((rows * scales.astype(rows.dtype)[:, None]).reshape(self.value.shape), self.why)

    def stretched(self, scales: Array) -> "Dense":
        value = accumulated(self.value)
        return Dense(value * scales.astype(value.dtype)[None], self.why)

    def minus(self, other: Factor, coefficient: Float[Array, ""]) -> "Dense":
        values = accumulated(other.materialize())
        return Dense(accumulated(self.value) - coefficient.astype(values.dtype) * values, self.why)

    def mean(self) -> Array:
        total = None if self.summary is None else self.summary[0]
        if total is not None and total.shape == self.shape:  # jax.shard_map returns one for each of its parts
            return total / self.count
        return average(self._rows()).reshape(self.shape)

    def centered(self) -> tuple["Dense", Array]:
        rows = self._rows()
        mean = average(rows)
        return Dense((rows - mean[None]).reshape(self.value.shape), self.why), mean.reshape(self.shape)

    def squared_norms(self) -> Float[Array, " n"]:
        if self.summary is not None:
            return self.summary[1]
        return jnp.sum(self._rows() ** 2, axis=1)

    def take(self, some: Any) -> "Dense":
        return Dense(self.value[some], self.why)

    def squared_deviations(self) -> Float[Array, " n"]:
        return jnp.sum(self._centered() ** 2, axis=1)

    def weighted_deviation(self, weights: Float[Array, " n"]) -> Float[Array, ""]:
        rows = self._rows()
        weights = weights.astype(rows.dtype)
        rows = rows - average(rows)[None]  # the weighted mean is then rounded to the digits of the deviations
        mean = einsum("n,np->p", weights / weights.sum(), rows)
        return einsum("n,np->", weights, (rows - mean[None]) ** 2)

    def coordinate_deviations(self) -> Array:
        return self.count * average(self._centered() ** 2).reshape(self.shape)

    def _centered(self) -> Float[Array, "n p"]:
        """g_i − ḡ; centered twice, since the first mean is rounded to the digits of g."""
        rows = self._rows()
        rows = rows - average(rows)[None]
        return rows - average(rows)[None]

    def second_moment(self) -> Array:
        return average(self._rows() ** 2).reshape(self.shape)

    def inner_products(self, direction: Array) -> Float[Array, " n"]:
        rows = self._rows()
        return einsum("np,p->n", rows, direction.reshape(-1).astype(rows.dtype))

    def gram(self, other: Factor) -> Float[Array, "n m"]:
        rows = self._rows()
        return einsum("np,mp->nm", rows, accumulated(other.materialize()).reshape(other.count, -1))

    def materialize(self) -> Array:
        return accumulated(self.value)

    def flops(self) -> Flops:
        n = self.count
        reduced = 2 * n * int(np.prod(self.shape))
        return Flops(*(self.to_form + cost for cost in (reduced, reduced, reduced, n * reduced)))

    def describe(self) -> str:
        return f"dense {self.value.shape}: {self.why}"


def dense_one_by_one(
    gradients: Callable[..., tuple[Array, ...]], arrays: Any, at_a_time: int, whys: Sequence[str], to_form: int = 0
) -> tuple[Dense, ...]:
    """The gradients of all examples in a loop, so many at a time, summed and squared while they are at hand.

    What of it is not asked for in the same compiled function is not computed, or not kept. Faster on a CPU than all
    examples together, where gradients larger than the cache are written, and read again to be reduced.

    Args:
        gradients: from the arrays of one example to its gradients, an array for every parameter.
        arrays: a pytree of arrays with a leading axis of n.
        at_a_time: how many examples are worked on together.
        whys: for every parameter, why its gradient is dense.
        to_form: see :class:`Dense`.
    """

    def one(totals: Any, arrays: Any) -> tuple[Any, Any]:
        values = tuple(accumulated(value) for value in gradients(*arrays))
        totals = tuple(total + value for total, value in zip(totals, values, strict=True))
        return totals, (values, tuple(jnp.sum(value**2) for value in values))

    def several(totals: Any, arrays: Any) -> tuple[Any, Any]:
        values = tuple(accumulated(value) for value in jax.vmap(gradients)(*arrays))
        totals = tuple(total + value.sum(axis=0) for total, value in zip(totals, values, strict=True))
        return totals, (values, tuple(jnp.sum(value**2, axis=tuple(range(1, value.ndim))) for value in values))

    zeros = [accumulated(jnp.zeros(shape.shape, shape.dtype)) for shape in _shapes_of_one(gradients, arrays)]
    zeros = varying_like(arrays, zeros)
    if at_a_time == 1:  # without a batch dimension of 1, which would slow products down
        totals, (values, norms) = jax.lax.scan(one, tuple(zeros), arrays, unroll=_UNROLL)
    else:
        some, rest = chunked(arrays, at_a_time)
        totals, kept = jax.lax.scan(several, tuple(zeros), some)
        kept = jax.tree.map(lambda array: jax.lax.collapse(array, 0, 2), kept)
        if rest is not None:
            totals, more = several(totals, rest)
            kept = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), kept, more)
        values, norms = kept
    known = zip(totals if len(values[0]) <= LARGEST_BLOCK else (None,) * len(whys), norms, strict=True)
    return tuple(Dense(*each) for each in zip(values, whys, (to_form,) * len(whys), known, strict=True))


def _shapes_of_one(function: Callable[..., Any], arrays: Any) -> Any:
    return jax.eval_shape(function, *jax.tree.map(lambda array: array[0], arrays))


_UNROLL = 4  # of loops over examples, so that independent products of several can run at the same time
