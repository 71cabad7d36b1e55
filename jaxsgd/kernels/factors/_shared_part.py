"""Per-example gradients that are factored but for a part that all examples share, as a weight penalty adds it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsgd._core.sums import accumulated
from jaxsgd.kernels.factors._dense import Dense
from jaxsgd.kernels.factors._factor import Factor, Flops, shared_by_all


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WithSharedPart(Factor):
    """g_i = h_i + s, with h_i the gradients of the factor ``base`` and ``part`` s, of the parameter's shape."""

    base: Any
    part: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def _part(self) -> Array:
        return shared_by_all(self.part, self.shape)

    def take(self, some: Any) -> "WithSharedPart":
        return WithSharedPart(self.base.take(some), self.part)

    def weighted_sum(self, weights: Float[Array, " n"]) -> Array:
        """Σ w_i g_i = Σ w_i h_i + s Σ w_i."""
        return self.base.weighted_sum(weights) + weights.sum().astype(self._part.dtype) * self._part

    def scaled(self, scales: Float[Array, " n"]) -> Dense:
        """The gradients s_i g_i, of which no part is shared any more."""
        return Dense(self.materialize(), "shared in part").scaled(scales)

    def times(self, number: Float[Array, ""]) -> "WithSharedPart":
        return WithSharedPart(self.base.times(number), self._part * number.astype(self._part.dtype))

    def stretched(self, scales: Array) -> "WithSharedPart":
        return WithSharedPart(self.base.stretched(scales), self._part * scales.astype(self._part.dtype))

    def minus(self, other: Factor, coefficient: Float[Array, ""]) -> Factor:
        """The gradients g_i − β f_i; what each of the two shares stays shared."""
        if not isinstance(other, WithSharedPart):
            return Dense(self.materialize(), "shared in part").minus(other, coefficient)
        part = self._part - coefficient.astype(other._part.dtype) * other._part
        return WithSharedPart(self.base.minus(other.base, coefficient), part)

    def mean(self) -> Array:
        return self.base.mean() + self._part

    def centered(self) -> tuple[Factor, Array]:
        centered, center = self.base.centered()
        return centered, center + self._part

    def squared_norms(self) -> Float[Array, " n"]:
        """‖g_i‖² = ‖h_i‖² + 2⟨h_i, s⟩ + ‖s‖²."""
        return self.base.squared_norms() + 2 * self.base.inner_products(self._part) + jnp.sum(self._part**2)

    # About their mean, which has the shared part as well, the g_i are where the h_i are about theirs.

    def squared_deviations(self) -> Float[Array, " n"]:
        return self.base.squared_deviations()

    def total_deviation(self) -> Float[Array, ""]:
        return self.base.total_deviation()

    def weighted_deviation(self, weights: Float[Array, " n"]) -> Float[Array, ""]:
        return self.base.weighted_deviation(weights)

    def coordinate_deviations(self) -> Array:
        return self.base.coordinate_deviations()

    def second_moment(self) -> Array:
        """(1/n) Σ g_i² = (1/n) Σ h_i² + 2 h̄ s + s², coordinate by coordinate."""
        return self.base.second_moment() + 2 * self.base.mean() * self._part + self._part**2

    def inner_products(self, direction: Array) -> Float[Array, " n"]:
        """⟨g_i, v⟩ = ⟨h_i, v⟩ + ⟨s, v⟩."""
        return self.base.inner_products(direction) + jnp.sum(self._part * direction.astype(self._part.dtype))

    def gram(self, other: Factor) -> Float[Array, "n m"]:
        """⟨g_i, f_j⟩ = ⟨h_i, f_j⟩ + ⟨s, f_j⟩."""
        if isinstance(other, WithSharedPart):
            products = self.base.gram(other.base) + self.base.inner_products(other._part)[:, None]
        else:
            products = self.base.gram(other)
        return products + other.inner_products(self._part)[None]

    def materialize(self) -> Array:
        return accumulated(self.base.materialize()) + self._part[None]

    def flops(self) -> Flops:
        mean, norms, second_moment, gram = self.base.flops()
        return Flops(mean, norms + mean, second_moment + mean, gram + 2 * mean)

    def describe(self) -> str:
        return f"{self.base.describe()} + one for all"
