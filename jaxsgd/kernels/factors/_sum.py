"""Per-example gradients that are sums of outer products whose entries are scaled differently, as of normalized weights.

The gradient with respect to V where the weights are V/‖V‖, column by column, is G/‖V‖ less a multiple c_o of V in every
column: the outer products of G, and those of ones and c, each entry times that of V. One part is not scaled and the
other one is, so that their positions do not stand side by side.

The squared norm is the sum of the products of all pairs of parts, of which two terms of one position each take i·o
multiplications (:mod:`~jaxsgd.kernels.factors._stretched`). The parts may cancel: a gradient along V disappears. Where
more digits are lost than one can spare, and where the parts have many positions, gradients are formed, a few examples
at a time.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsgd._core.sums import accumulation_dtype, einsum, examples_at_a_time, in_blocks, total, varying_like
from jaxsgd.kernels.factors._cancellation import CHEAP_CANCELLATION
from jaxsgd.kernels.factors._dense import Dense
from jaxsgd.kernels.factors._factor import Factor, Flops
from jaxsgd.kernels.factors._outer_products import OuterProducts
from jaxsgd.kernels.factors._stretched import Stretched, in_units


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sum(Factor):
    """g_i = Σ_k h_ki, with h_k the gradients of ``parts``: outer products, stretched or not, of one layout."""

    parts: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parts[0].shape)

    def _map(self, function: Callable[[Any], Any]) -> "Sum":
        return Sum(tuple(map(function, self.parts)))

    def take(self, some: Any) -> "Sum":
        return self._map(lambda part: part.take(some))

    def weighted_sum(self, weights: Float[Array, " n"]) -> Array:
        return total([part.weighted_sum(weights) for part in self.parts])

    def scaled(self, scales: Float[Array, " n"]) -> "Sum":
        return self._map(lambda part: part.scaled(scales))

    def stretched(self, scales: Array) -> "Sum":
        return self._map(lambda part: part.stretched(scales))

    def minus(self, other: Factor, coefficient: Float[Array, ""]) -> Dense:
        return Dense(self.materialize(), "a difference").minus(other, coefficient)

    def mean(self) -> Array:
        return total([part.mean() for part in self.parts])

    def centered(self) -> tuple["Sum", Array]:
        parts, centers = zip(*(part.centered() for part in self.parts), strict=True)
        return Sum(parts), total(centers)

    def squared_deviations(self) -> Float[Array, " n"]:
        centered, _ = self.centered()
        return centered.deviations_from(centered.mean())

    def squared_norms(self) -> Float[Array, " n"]:
        """‖g_i‖², from the products of all pairs of parts, unless too many digits cancel: then from the gradients."""
        if any(_outer(part).sizes[1] > _FEW_POSITIONS for part in self.parts):
            return self._formed_norms()
        squares = total([part.squared_norms() for part in self.parts])
        pairs = itertools.combinations(self.parts, 2)
        norms = squares + 2 * total([_products(*pair) for pair in pairs])
        lost = jnp.any(squares > CHEAP_CANCELLATION * norms)
        return jax.lax.cond(lost, self._formed_norms, lambda: norms)

    def _formed_norms(self) -> Float[Array, " n"]:
        return self._each(lambda gradient: jnp.sum(gradient**2))

    def deviations_from(self, center: Array) -> Float[Array, " n"]:
        return self._each(lambda gradient: jnp.sum((gradient - center) ** 2))

    def coordinate_deviations(self) -> Array:
        centered, _ = self.centered()
        mean = centered.mean()
        return centered._sum(lambda gradient: (gradient - mean) ** 2)

    def second_moment(self) -> Array:
        return self._sum(jnp.square) / self.count

    def inner_products(self, direction: Array) -> Float[Array, " n"]:
        return total([part.inner_products(direction) for part in self.parts])

    def gram(self, other: Factor) -> Float[Array, "n m"]:
        """⟨g_i, f_j⟩, one g_i at a time."""
        return self._each(other.inner_products)

    def materialize(self) -> Array:
        return total([part.materialize() for part in self.parts])

    def flops(self) -> Flops:
        return Flops(*map(sum, zip(*(part.flops() for part in self.parts), strict=True)))

    def describe(self) -> str:
        return " + ".join(part.describe() for part in self.parts)

    def _each(self, function: Callable[[Array], Array]) -> Array:
        """``function`` of the gradient of every example, a few examples at a time."""
        size = examples_at_a_time(sum(math.prod(_outer(part).sizes) for part in self.parts))
        batch_size = None if size == 1 else size
        return jax.lax.map(lambda sides: function(self._formed(sides)), self._sides(), batch_size=batch_size)

    def _sum(self, function: Callable[[Array], Array]) -> Array:
        """Σ ``function`` of the gradient of every example."""

        def add(sum_: Array, sides: Any) -> tuple[Array, None]:
            return sum_ + function(self._formed(sides)), None

        def summed(sides: Any) -> Array:
            zeros = jnp.zeros(self.shape, accumulation_dtype(*jax.tree.leaves(sides)))
            return jax.lax.scan(add, varying_like(sides, zeros), sides)[0]

        return in_blocks(summed, self._sides())

    def _sides(self) -> list[tuple[Array, Array]]:
        """Both sides of every part, of all examples."""
        outer = [_outer(part) for part in self.parts]
        dtype = accumulation_dtype(*(side for part in outer for side in (part.left, part.right)))
        return [(part.left.astype(dtype), part.right.astype(dtype)) for part in outer]

    def _formed(self, sides: list[tuple[Array, Array]]) -> Array:
        """The gradient of one example."""
        blocks = [einsum("bti,bto->bio", *pair) for pair in sides]
        parts = [_outer(part).layout(block) for part, block in zip(self.parts, blocks, strict=True)]
        return total([part if s is None else s * part for part, s in zip(parts, map(_scales, self.parts), strict=True)])


def _outer(part: Any) -> OuterProducts:
    outer: OuterProducts = part.base if isinstance(part, Stretched) else part
    return outer


def _scales(part: Any) -> Array | None:
    return part._scales if isinstance(part, Stretched) else None


def _products(first: Any, second: Any) -> Float[Array, " n"]:
    """⟨f_i, h_i⟩ for two parts, from all pairs of their positions, in units of the sides' own."""
    (left, a), (right, b), (left2, c), (right2, d) = (
        in_units(side.astype(accumulation_dtype(side)))
        for p in map(_outer, (first, second))
        for side in (p.left, p.right)
    )
    (blocks, t, i, o), s = _outer(first).sizes, _outer(second).sizes[1]
    scales = [_outer(part).layout.adjoint(each) for part in (first, second) if (each := _scales(part)) is not None]
    found = jnp.zeros(len(left), left.dtype)
    for p, q in itertools.product(range(t), range(s)):
        along, across = left[:, :, p] * left2[:, :, q], right[:, :, p] * right2[:, :, q]
        if scales:
            D = math.prod(scales[1:], start=scales[0]).reshape(blocks, i, o)
            found += jnp.sum(einsum("nbi,bio->nbo", along, D.astype(along.dtype)) * across, axis=(1, 2))
        else:
            found += jnp.sum(along.sum(axis=2) * across.sum(axis=2), axis=1)
    return found * (a * b) * (c * d)


_FEW_POSITIONS = 2
