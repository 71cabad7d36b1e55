"""Per-example gradients as sums of outer products, each coordinate times a number that all examples share.

With D = S∘S for scales S, entry by entry, the statistics of one position follow from its sides as those of outer
products do, with a matrix D between them in place of a product:

    ‖S∘abᵀ‖² = (a∘a)ᵀ D (b∘b),    ⟨S∘abᵀ, S∘cdᵀ⟩ = aᵀ (D∘cdᵀ) b.

Such a matrix does not split into a part for each side, as it does where all scales are equal. Pairs of t positions
then take t²·i·o multiplications, and forming the gradient t·i·o: of more than two positions it is formed, a few
examples at a time. The products of n and m examples take n·m·i·o multiplications whatever is done.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsgd._core import units
from jaxsgd._core.sums import einsum, examples_at_a_time
from jaxsgd.kernels.factors._cancellation import CHEAP_CANCELLATION, MAX_CANCELLATION, difference
from jaxsgd.kernels.factors._dense import Dense
from jaxsgd.kernels.factors._factor import Factor, Flops, shared_by_all

_NUMBERS_AT_A_TIME = 2**24  # of gradients that are formed to be multiplied with others


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stretched(Factor):
    """g_i = S∘h_i, with h_i the gradients of ``base``, outer products, and ``scales`` S of the parameter's shape."""

    base: Any
    scales: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    @property
    def _scales(self) -> Array:
        return shared_by_all(self.scales, self.shape)

    def _blocks(self, array: Array) -> Float[Array, "b i o"]:
        """An array of the parameter's shape as the matrices of the outer products."""
        b, _, i, o = self.base.sizes
        return self.base.layout.adjoint(array).reshape(b, i, o)

    def take(self, some: Any) -> "Stretched":
        return Stretched(self.base.take(some), self.scales)

    def weighted_sum(self, weights: Float[Array, " n"]) -> Array:
        return self._scales * self.base.weighted_sum(weights)

    def scaled(self, scales: Float[Array, " n"]) -> "Stretched":
        return Stretched(self.base.scaled(scales), self.scales)

    def stretched(self, scales: Array) -> "Stretched":
        return Stretched(self.base, self._scales * scales.astype(self._scales.dtype))

    def minus(self, other: Factor, coefficient: Float[Array, ""]) -> Dense:
        """The gradients g_i − β f_i, whose scales may be others."""
        return Dense(self.materialize(), "a difference").minus(other, coefficient)

    def mean(self) -> Array:
        return self._scales * self.base.mean()

    def centered(self) -> tuple["Stretched", Array]:
        centered, center = self.base.centered()
        return Stretched(centered, self.scales), self._scales * center

    def squared_norms(self) -> Float[Array, " n"]:
        """‖g_i‖²: (a∘a)ᵀ D (b∘b) for one position, the sum over pairs for two, else from the i × o matrix.

        All three are taken in units of their own: a∘a may be less than the dtype holds where a∘a times D is not.
        """
        t = self.base.sizes[1]
        if t > 2:
            return self._each(lambda block: jnp.sum(block**2))
        (left, a), (right, b) = (in_units(side) for side in self._sides())
        scales = self._blocks(self._scales)
        unit = units.near(jnp.max(jnp.abs(scales), initial=0))
        D, sums = (scales / unit) ** 2, jnp.zeros(len(left), left.dtype)
        for p, q in itertools.combinations_with_replacement(range(t), 2):
            along = einsum("nbi,bio->nbo", left[:, :, p] * left[:, :, q], D) * right[:, :, p] * right[:, :, q]
            sums += (1 if p == q else 2) * jnp.sum(along, axis=(1, 2))
        whole = a * unit * b
        return sums * whole * whole

    def deviations_from(self, center: Array) -> Float[Array, " n"]:
        blocks = self._blocks(center)
        return self._each(lambda block: jnp.sum((block - blocks) ** 2))

    def squared_deviations(self) -> Float[Array, " n"]:
        """‖g_i − ḡ‖², for one position from centered factors, unless too many digits cancel: then from matrices."""
        if self.base.sizes[1] != 1:
            return super().squared_deviations()
        centered, _ = self.centered()
        shift = centered.mean()
        norms, products = centered.squared_norms(), centered.inner_products(shift)
        deviations = norms - 2 * products + jnp.sum(shift**2)
        lost = norms.sum() > MAX_CANCELLATION * deviations.sum()
        return jax.lax.cond(lost, super().squared_deviations, lambda: deviations)

    def total_deviation(self) -> Float[Array, ""]:
        """Σ ‖g_i − ḡ‖² = Σ ‖g_i‖² − n‖ḡ‖²; where that loses digits, from the deviations themselves."""
        squares, smaller = self.squared_norms().sum(), self.count * jnp.sum(self.mean() ** 2)
        return difference(squares, smaller, CHEAP_CANCELLATION, lambda: self.squared_deviations().sum())

    def coordinate_deviations(self) -> Array:
        return self._scales * (self._scales * self.base.coordinate_deviations())

    def second_moment(self) -> Array:
        return self._scales * (self._scales * self.base.second_moment())

    def inner_products(self, direction: Array) -> Float[Array, " n"]:
        """⟨g_i, v⟩ = ⟨h_i, S∘v⟩."""
        scales = self._scales
        return self.base.inner_products(scales * direction.astype(scales.dtype))

    def gram(self, other: Factor) -> Float[Array, "n m"]:
        """⟨g_i, f_j⟩, one g_i at a time; where all f_j must be formed, as many of both as memory is to hold."""
        if isinstance(other, Stretched) and other.base.sizes[1] > 1:
            return self._formed_gram(other)

        def products(sides: tuple[Array, Array]) -> Array:
            return other.inner_products(self._scales * self.base.layout(_block(*sides)))

        return _map(products, self._sides(), examples_at_a_time(other.count * math.prod(self.shape)))

    def _formed_gram(self, other: "Stretched") -> Float[Array, "n m"]:
        own, others = self._blocks(self._scales), other._blocks(other._scales)
        size = max(1, _NUMBERS_AT_A_TIME // max(own.size, 1))

        def products(sides: tuple[Array, Array]) -> Array:
            block = own * _block(*sides)
            return _map(lambda sides2: einsum("bio,bio->", block, others * _block(*sides2)), other._sides(), size)

        return _map(products, self._sides(), size)

    def materialize(self) -> Array:
        return self._scales[None] * self.base.materialize()

    def flops(self) -> Flops:
        n, (b, t, i, o) = self.count, self.base.sizes
        mean, _, second_moment, _ = self.base.flops()
        formed, entries = 2 * n * b * t * i * o, b * i * o
        return Flops(
            mean=mean + entries,
            squared_norms=t * (t + 1) // 2 * 2 * n * entries if t <= 2 else formed + 3 * n * entries,
            second_moment=second_moment + 2 * entries,
            gram=formed + 2 * n**2 * entries,
        )

    def describe(self) -> str:
        return f"{self.base.describe()}, stretched"

    def _sides(self) -> tuple[Array, Array]:
        dtype = self._scales.dtype
        return self.base.left.astype(dtype), self.base.right.astype(dtype)

    def _each(self, function: Callable[[Array], Array]) -> Array:
        """``function`` of the stretched (b, i, o) matrices of every example, a few examples at a time."""
        scales = self._blocks(self._scales)
        return self.base.each(lambda block: function(scales * block))


def _block(left: Float[Array, "b t i"], right: Float[Array, "b t o"]) -> Float[Array, "b i o"]:
    return einsum("bti,bto->bio", left, right)


def _map(function: Callable[[tuple[Array, Array]], Array], sides: tuple[Array, Array], size: int) -> Array:
    """``function`` of the sides of every example, so many at a time."""
    return jax.lax.map(function, sides, batch_size=None if size == 1 else size)


def in_units(side: Float[Array, "n b t i"]) -> tuple[Float[Array, "n b t i"], Float[Array, " n"]]:
    """One side in a unit near the largest of its numbers, of every example alone, and the units."""
    unit = jax.vmap(units.near)(jnp.max(jnp.abs(side), axis=(1, 2, 3), initial=0))
    return side / unit[:, None, None, None], unit
