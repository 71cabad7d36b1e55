"""Per-example gradients with respect to a table of which every example uses a few rows.

A table of a hundred thousand rows is never formed for each example.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxsgd._core.sums import accumulated, einsum, examples_at_a_time
from jaxsgd.kernels.factors._dense import Dense
from jaxsgd.kernels.factors._factor import Factor, Flops


def wide(indices: Integer[Array, "..."]) -> Integer[Array, "..."]:
    """Indices in a type that holds the number of rows as well, which bytes do not for a table of 256."""
    return indices.astype(jnp.int32) if indices.dtype.itemsize < 4 else indices


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows(Factor):
    """Rows added to a table: ``indices`` k, shape (n, t), and ``rows`` r, shape (n, t, d).

    The gradient of example n is zero but for the sum of the r_nt with k_nt = k in row k, of ``num_rows`` rows; an index
    of ``num_rows`` drops its row, which must be zero. ``table_shape`` is the parameter's shape; its first ``num_axes``
    axes are those of the rows, counted through. ``are_distinct`` is set where no example has an index twice.
    """

    indices: Any
    rows: Any
    table_shape: tuple[int, ...] = field(metadata={"static": True})
    num_axes: int = field(default=1, metadata={"static": True})
    are_distinct: bool = field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.table_shape

    @property
    def num_rows(self) -> int:
        """How many rows the table has."""
        return math.prod(self.shape[: self.num_axes])

    def is_larger_than_formed(self) -> bool:
        """Whether the table is smaller than the rows of a single example, without their first axis."""
        return self.rows.shape[0] > max(self.num_rows, 1)

    def block_size(self) -> int:
        """How many numbers a formed gradient has."""
        return math.prod(self.shape)

    def work_to_form(self) -> int:
        """How many additions it takes to form the table of a single example."""
        return int(self.rows.size)

    def block(self) -> Array:
        """The gradient of a single example, from rows without their first axis."""
        return self._scatter(self.indices, accumulated(self.rows)).reshape(self.shape)

    def _scatter(self, indices: Integer[Array, "..."], rows: Float[Array, "... d"]) -> Float[Array, "v d"]:
        table = jnp.zeros((self.num_rows, rows.shape[-1]), rows.dtype)
        return table.at[indices.reshape(-1)].add(rows.reshape(-1, rows.shape[-1]), mode="drop")

    def _distinct(self) -> tuple[Float[Array, "n t d"], Bool[Array, "n t"]]:
        """Rows in which an index that occurs again has been added to its first occurrence, and which these are."""
        rows = accumulated(self.rows)
        inside = (self.indices >= 0) & (self.indices < self.num_rows)
        if self.are_distinct:
            return rows, inside
        same = self.indices[:, :, None] == self.indices[:, None, :]
        first = ~jnp.any(jnp.tril(same, -1), axis=2)
        summed = einsum("nts,nsd->ntd", same.astype(rows.dtype), rows)
        found = first & inside
        return jnp.where(found[:, :, None], summed, jnp.zeros((), rows.dtype)), found

    def weighted_sum(self, weights: Float[Array, " n"]) -> Array:
        rows = accumulated(self.rows)
        return self._scatter(self.indices, rows * weights.astype(rows.dtype)[:, None, None]).reshape(self.shape)

    def scaled(self, scales: Float[Array, " n"]) -> "Rows":
        rows = accumulated(self.rows)
        return replace(self, rows=rows * scales.astype(rows.dtype)[:, None, None])

    def stretched(self, scales: Array) -> "Rows":
        rows = accumulated(self.rows)
        return replace(self, rows=rows * self._rows_of(scales.astype(rows.dtype)))

    def minus(self, other: Factor, coefficient: Float[Array, ""]) -> Factor:
        """The gradients g_i − β h_i, as the rows of both."""
        if not isinstance(other, Rows) or other.num_axes != self.num_axes:
            return Dense(self.materialize(), "a difference").minus(other, coefficient)
        rows, rows2 = accumulated(self.rows), accumulated(other.rows)
        indices = jnp.concatenate([self.indices, other.indices], axis=1)
        rows = jnp.concatenate([rows, -coefficient.astype(rows2.dtype) * rows2], axis=1)
        return replace(self, indices=indices, rows=rows, are_distinct=False)

    def mean(self) -> Array:
        return self._scatter(self.indices, accumulated(self.rows)).reshape(self.shape) / self.count

    def centered(self) -> tuple["Rows", Array]:
        """Less the mean in the rows that every example has: in all others a mean is no larger than √n deviations."""
        rows, found = self._distinct()
        times = self._scatter(self.indices, found[:, :, None].astype(rows.dtype))
        table = jnp.where(times == self.count, self._mean_table(rows, found, times), 0)
        indices = jnp.where(found, self.indices, self.num_rows)
        return replace(self, indices=indices, rows=self._from_mean(rows, found, table)), table.reshape(self.shape)

    def _mean_table(self, rows: Array, found: Array, times: Array) -> Float[Array, "v d"]:
        """ḡ as a table, with what the sum of n rows, added one by one, has lost to rounding."""
        mean = self._scatter(self.indices, rows) / self.count
        left = self._scatter(self.indices, self._from_mean(rows, found, mean)) - (self.count - times) * mean
        return mean + left / self.count

    def squared_norms(self) -> Float[Array, " n"]:
        return jnp.sum(self._distinct()[0] ** 2, axis=(1, 2))

    def deviations_from(self, center: Array) -> Float[Array, " n"]:
        """‖g_i − m‖², from ‖g_ik − m_k‖² for the rows k that example i has and ‖m_k‖² for those that it has not."""
        table = center.reshape(self.num_rows, -1)
        rows, found = self._distinct()
        here = jnp.sum(self._from_mean(rows, found, table) ** 2, axis=(1, 2))
        norms = jnp.sum(table**2, axis=1)

        def elsewhere(indices: Integer[Array, " t"]) -> Float[Array, ""]:
            return norms.at[indices].set(jnp.zeros((), norms.dtype), mode="drop").sum()

        return here + jax.lax.map(elsewhere, self.indices, batch_size=examples_at_a_time(self.num_rows))

    def total_deviation(self) -> Float[Array, ""]:
        return self.coordinate_deviations().sum()

    def coordinate_deviations(self) -> Array:
        """Σ (g_i − ḡ)², in row k from (g_ik − ḡ_k)² where example i has it, and ḡ_k² where it has not.

        The sum for the mean is rounded to its own digits, which are not those of the deviations: what is left of these
        on the average is taken off at the end.
        """
        rows, found = self._distinct()
        times = self._scatter(self.indices, found[:, :, None].astype(rows.dtype))
        mean, absent = self._mean_table(rows, found, times), self.count - times
        deviations = self._from_mean(rows, found, mean)
        left = (self._scatter(self.indices, deviations) - absent * mean) / self.count
        here = self._scatter(self.indices, deviations**2)
        return (here + absent * mean**2 - self.count * left**2).reshape(self.shape)

    def _from_mean(self, rows: Array, found: Array, mean: Array) -> Float[Array, "n t d"]:
        """g_ik − ḡ_k for every row k that example i has."""
        picked = mean.at[self.indices].get(mode="fill", fill_value=0)
        return jnp.where(found[:, :, None], rows - picked, jnp.zeros((), rows.dtype))

    def second_moment(self) -> Array:
        return self._scatter(self.indices, self._distinct()[0] ** 2).reshape(self.shape) / self.count

    def inner_products(self, direction: Array) -> Float[Array, " n"]:
        rows = accumulated(self.rows)
        return jnp.sum(rows * self._rows_of(direction.astype(rows.dtype)), axis=(1, 2))

    def _rows_of(self, array: Array) -> Float[Array, "n t d"]:
        """Those rows of an array of the parameter's shape that the examples have."""
        return array.reshape(self.num_rows, -1).at[self.indices].get(mode="fill", fill_value=0)

    def gram(self, other: Factor) -> Float[Array, "n m"]:
        """⟨g_i, h_j⟩, one example of the first at a time."""

        def products(pair: tuple[Array, Array]) -> Array:
            return other.inner_products(self._scatter(*pair).reshape(self.shape))

        return jax.lax.map(products, (self.indices, accumulated(self.rows)))

    def materialize(self) -> Array:
        return jax.vmap(self._scatter)(self.indices, accumulated(self.rows)).reshape(self.count, *self.shape)

    def flops(self) -> Flops:
        n, t, d = self.rows.shape
        distinct = 0 if self.are_distinct else 2 * n * t**2 * d
        return Flops(n * t * d, distinct + 2 * n * t * d, distinct + 2 * n * t * d, 2 * n**2 * t * d)

    def describe(self) -> str:
        return f"rows of a table {self.rows.shape}"
