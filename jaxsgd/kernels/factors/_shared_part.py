"""Per-example gradients that are factored but for a part that all examples share, as a weight penalty adds it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsgd._core.sums import Flops, accumulated
from jaxsgd.kernels.factors._dense import Dense


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WithSharedPart:
    """g_i = h_i + s, with h_i the gradients of the factor ``base`` and ``shift`` s, of the parameter's shape."""

    base: Any
    shift: Any

    @property
    def count(self) -> int:
        """The number of examples, n."""
        return int(self.base.count)

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return tuple(self.shift.shape)

    @property
    def _shift(self) -> Array:
        return accumulated(self.shift)

    def take(self, some: Any) -> "WithSharedPart":
        """The gradients of some of the examples."""
        return WithSharedPart(self.base.take(some), self.shift)

    def weighted_sum(self, weights: Float[Array, " n"]) -> Array:
        """Σ w_i g_i = Σ w_i h_i + s Σ w_i."""
        return self.base.weighted_sum(weights) + weights.sum().astype(self._shift.dtype) * self._shift

    def scaled(self, scales: Float[Array, " n"]) -> Dense:
        """The gradients s_i g_i, of which no part is shared any more."""
        return Dense(self.materialize(), "shared in part").scaled(scales)

    def minus(self, other: Any, coefficient: Float[Array, ""]) -> Any:
        """The gradients g_i − β f_i; what each of the two shares stays shared."""
        if not isinstance(other, WithSharedPart):
            return Dense(self.materialize(), "shared in part").minus(other, coefficient)
        shift = self._shift - coefficient.astype(other._shift.dtype) * other._shift
        return WithSharedPart(self.base.minus(other.base, coefficient), shift)

    def mean(self) -> Array:
        """(1/n) Σ g_i."""
        return self.base.mean() + self._shift

    def squared_norms(self) -> Float[Array, " n"]:
        """‖g_i‖² = ‖h_i‖² + 2⟨h_i, s⟩ + ‖s‖²."""
        return self.base.squared_norms() + 2 * self.base.inner_products(self._shift) + jnp.sum(self._shift**2)

    def squared_deviations(self) -> Float[Array, " n"]:
        """‖g_i − ḡ‖² = ‖h_i − h̄‖²."""
        return self.base.squared_deviations()

    def total_deviation(self) -> Float[Array, ""]:
        """Σ ‖g_i − ḡ‖²."""
        return self.base.total_deviation()

    def weighted_deviation(self, weights: Float[Array, " n"]) -> Float[Array, ""]:
        """Σ w_i ‖g_i − ḡ_w‖² for the weighted mean ḡ_w."""
        return self.base.weighted_deviation(weights)

    def coordinate_deviations(self) -> Array:
        """Σ (g_i − ḡ)², coordinate by coordinate."""
        return self.base.coordinate_deviations()

    def second_moment(self) -> Array:
        """(1/n) Σ g_i² = (1/n) Σ h_i² + 2 h̄ s + s², coordinate by coordinate."""
        return self.base.second_moment() + 2 * self.base.mean() * self._shift + self._shift**2

    def inner_products(self, direction: Array) -> Float[Array, " n"]:
        """⟨g_i, v⟩ = ⟨h_i, v⟩ + ⟨s, v⟩."""
        return self.base.inner_products(direction) + jnp.sum(self._shift * direction.astype(self._shift.dtype))

    def gram(self, other: Any) -> Float[Array, "n m"]:
        """⟨g_i, f_j⟩ = ⟨h_i, f_j⟩ + ⟨s, f_j⟩."""
        if isinstance(other, WithSharedPart):
            products = self.base.gram(other.base) + self.base.inner_products(other._shift)[:, None]
        else:
            products = self.base.gram(other)
        return products + other.inner_products(self._shift)[None]

    def materialize(self) -> Array:
        """All g_i, shape (n, *shape)."""
        return accumulated(self.base.materialize()) + self._shift[None]

    def flops(self) -> Flops:
        """Predicted floating-point operations, two for a product that is added."""
        mean, norms, second_moment, gram = self.base.flops()
        return Flops(mean, norms + mean, second_moment + mean, gram + 2 * mean)

    def describe(self) -> str:
        """How the gradients are kept, for people."""
        return f"{self.base.describe()} + one for all"
