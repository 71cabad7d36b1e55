"""What gradients with respect to one parameter can do, whatever they are kept as: the operations and their formulas.

A kind of factor says only how it computes them. Statistics of all parameters are put together from these in
:class:`jaxsgd.kernels.PerExampleGradients`: those of examples are summed over the parameters, and those of coordinates
stand side by side.
"""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsgd._core.sums import accumulation_dtype


class Flops(NamedTuple):
    """Predicted floating-point operations of the statistics of n gradients with respect to one parameter."""

    mean: int
    squared_norms: int
    second_moment: int
    gram: int


class Factor(abc.ABC):
    """The gradients g_i of n examples with respect to one parameter.

    Every kind is a registered dataclass whose arrays have a leading axis of n, except for what all examples share.
    Results are in the dtype that sums are accumulated in: float32 at least.
    """

    @property
    def count(self) -> int:
        """The number of examples, n."""
        return int(jax.tree.leaves(self)[0].shape[0])

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""

    def take(self, some: Any) -> "Factor":
        """The gradients of some of the examples, in the order of ``some``, a slice or an array of indices."""
        return jax.tree.map(lambda array: array[some], self)

    @abc.abstractmethod
    def weighted_sum(self, weights: Float[Array, " n"]) -> Array:
        """Σ w_i g_i."""

    @abc.abstractmethod
    def scaled(self, scales: Float[Array, " n"]) -> "Factor":
        """The gradients s_i g_i."""

    def times(self, number: Float[Array, ""]) -> "Factor":
        """The gradients c g_i for one number c."""
        return self.scaled(jnp.full(self.count, number))

    @abc.abstractmethod
    def stretched(self, scales: Array) -> "Factor":
        """The gradients s∘g_i, coordinate by coordinate, for scales s of the parameter's shape."""

    @abc.abstractmethod
    def minus(self, other: "Factor", coefficient: Float[Array, ""]) -> "Factor":
        """The differences g_i − β h_i, with h_i those of any factor of the same parameter and β the coefficient."""

    @abc.abstractmethod
    def mean(self) -> Array:
        """ḡ = (1/n) Σ g_i."""

    @abc.abstractmethod
    def centered(self) -> tuple["Factor", Array]:
        """The gradients g_i − c about some c near ḡ, and c; no digit of the differences is lost where ḡ is large."""

    def precise_mean(self) -> Array:
        """ḡ to its own rounding: what a sum of n large numbers loses is made up from the centered gradients."""
        centered, center = self.centered()
        return center + centered.mean()

    @abc.abstractmethod
    def squared_norms(self) -> Float[Array, " n"]:
        """‖g_i‖²."""

    def deviations_from(self, center: Array) -> Float[Array, " n"]:
        """‖g_i − m‖² for a center m of the parameter's shape."""
        centered = self.materialize() - center[None]
        return jnp.sum(centered**2, axis=tuple(range(1, centered.ndim)))

    def squared_deviations(self) -> Float[Array, " n"]:
        """‖g_i − ḡ‖², from centered gradients, so that no digit cancels."""
        return self.deviations_from(self.precise_mean())

    def total_deviation(self) -> Float[Array, ""]:
        """Σ ‖g_i − ḡ‖²."""
        return self.squared_deviations().sum()

    def weighted_deviation(self, weights: Float[Array, " n"]) -> Float[Array, ""]:
        """Σ w_i ‖g_i − ḡ_w‖² for weights w ≥ 0 and the weighted mean ḡ_w = Σ w_i g_i / Σ w_i."""
        centered, _ = self.centered()  # the weighted mean is then rounded to the digits of the deviations
        mean = centered.weighted_sum(weights / weights.sum())
        return jnp.sum(weights.astype(mean.dtype) * centered.deviations_from(mean))

    @abc.abstractmethod
    def coordinate_deviations(self) -> Array:
        """Σ (g_i − ḡ)², coordinate by coordinate."""

    @abc.abstractmethod
    def second_moment(self) -> Array:
        """(1/n) Σ g_i², coordinate by coordinate."""

    @abc.abstractmethod
    def inner_products(self, direction: Array) -> Float[Array, " n"]:
        """⟨g_i, v⟩ for a direction v of the parameter's shape."""

    @abc.abstractmethod
    def gram(self, other: "Factor") -> Float[Array, "n m"]:
        """⟨g_i, h_j⟩, with h_j those of any factor of the same parameter."""

    @abc.abstractmethod
    def materialize(self) -> Array:
        """All g_i, shape (n, *shape)."""

    @abc.abstractmethod
    def flops(self) -> Flops:
        """Predicted floating-point operations, two for a product that is added."""

    @abc.abstractmethod
    def describe(self) -> str:
        """How the gradients are kept, for people."""


def shared_by_all(array: Array, shape: tuple[int, ...]) -> Array:
    """What the gradients of all examples share, of the parameter's shape.

    Raises:
        ValueError: if ``jax.shard_map`` returned it once for each of its parts.
    """
    if array.shape != shape:
        raise ValueError(
            "statistics of gradients in which examples share a part, as of a weight penalty or a metric, must be "
            "computed inside jax.shard_map, which returned that part once for each device: "
            f"{array.shape} for {shape}"
        )
    return array.astype(accumulation_dtype(array))
