"""Per-example gradients as sums of outer products, as dense layers, convolutions and recurrences give them.

Nothing of n times the parameter's size is formed unless that is the cheapest exact form of a statistic, and then a few
examples at a time.

Which form is cheapest
----------------------
In each block a gradient is G = AᵀB, with A of shape (t, i) and B of shape (t, o). Multiplications for one example:

    form G and square its entries   t·i·o + i·o
    Σ_pq (AAᵀ)_pq (BBᵀ)_pq = ‖G‖²   t²·i + t²·o + t²

*Squared norms* are taken from the pairs of positions where t·(i + o) ≤ i·o, which compares t²·(i + o) with t·i·o. The
condition implies t < i and t < o, hence t² < i·o: the terms that it leaves out are for the pairs too. For a square
layer it says t ≤ i/2. That one multiplication costs as much as another, in large products and in small ones, is the
heuristic. So is the case of t ≤ 2, where pairs are always taken: for t = 1 they are i + o + 1 multiplications against
2·i·o, but for t = 2 the count would prefer G in small blocks, such as 3 × 3. Pairs of so few positions are sums over
the rows of all examples at once, and G is a loop over examples, with a product of tiny matrices in every turn.

*Centered gradients* as factors have 2t positions (:meth:`OuterProducts._centered`), so that the pairs take 4t²·(i + o).
Compared with t·i·o, that is the condition 4t·(i + o) ≤ i·o. For the sums, ``total_deviation`` and
``weighted_deviation``, nothing else is needed for each example. ``squared_deviations`` also takes the inner products
with a mean, another 2t·i·o, and the count alone would then always prefer G − Ḡ. The same condition is used, as a
heuristic: at most three times the count, but in one product for all examples where the other way writes and reads a
matrix for each. One position becomes two, and pairs of two positions are always taken, as above.

*Gram matrices* of n and m examples with t and s positions: the pairs take n·m·t·s·(i + o) multiplications, forming both
sides (n·t + m·s)·i·o, and their product n·m·i·o. These are compared as they are, and the memory of (n + m)·i·o numbers
is not counted. For t = s = 1 the pairs are two matrix products, of n·m·(i + o) multiplications, and are always taken.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsgd._core.sums import accumulation_dtype, einsum, examples_at_a_time, in_blocks, total, varying_like
from jaxsgd.kernels.factors._cancellation import CHEAP_CANCELLATION, MAX_CANCELLATION, difference
from jaxsgd.kernels.factors._dense import Dense
from jaxsgd.kernels.factors._factor import Factor, Flops
from jaxsgd.kernels.factors._layout import Layout
from jaxsgd.kernels.factors._stretched import Stretched


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OuterProducts(Factor):
    """Sums of outer products: ``left`` a, shape (n, b, t, i), and ``right`` b, shape (n, b, t, o).

    The gradient of example n is ``layout`` of Σ_t a_ntᵀ b_nt, one matrix (i, o) for each of b blocks.
    """

    left: Any
    right: Any
    layout: Layout = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        base = jax.ShapeDtypeStruct(self.layout.base, self.left.dtype)  # type: ignore[no-untyped-call]
        return tuple(jax.eval_shape(self.layout, base).shape)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Blocks b, positions t, and the sides i and o of a block."""
        _, b, t, i = self.left.shape
        return b, t, i, int(self.right.shape[3])

    def _arrays(self) -> tuple[Array, Array]:
        dtype = accumulation_dtype(self.left, self.right)
        return self.left.astype(dtype), self.right.astype(dtype)

    def block(self) -> Array:
        """The gradient of a single example, from factors without their first axis."""
        dtype = accumulation_dtype(self.left, self.right)
        return self.layout(_contract(self.left.astype(dtype)[None], self.right.astype(dtype)[None]))

    def is_larger_than_formed(self) -> bool:
        """Whether the gradient of a single example is smaller than its factors, without their first axis."""
        (_, t, i), o = self.left.shape, self.right.shape[2]
        return bool(t > 1 and t * (i + o) >= i * o)

    def block_size(self) -> int:
        """How many numbers a formed gradient has, but for zeros around it."""
        return math.prod(self.layout.base)

    def work_to_form(self) -> int:
        """How many multiplications it takes to form the gradient of a single example."""
        return math.prod(self.left.shape) * int(self.right.shape[2])

    def weighted_sum(self, weights: Float[Array, " n"]) -> Array:
        """Σ w_i g_i, one matrix product over examples and positions."""
        left, right = self._arrays()
        return self.layout(_contract(left, right * weights.astype(right.dtype)[:, None, None, None]))

    def scaled(self, scales: Float[Array, " n"]) -> "OuterProducts":
        left, right = self._arrays()
        return OuterProducts(left, right * scales.astype(right.dtype)[:, None, None, None], self.layout)

    def stretched(self, scales: Array) -> Stretched:
        return Stretched(self, scales.astype(accumulation_dtype(self.left, self.right)))

    def minus(self, other: Factor, coefficient: Float[Array, ""]) -> Factor:
        """The gradients g_i − β h_i, as factors of 2t positions where those of h have the shapes of these.

        AᵀB − βCᵀD = (A − C)ᵀB + Cᵀ(B − βD), in which no digit cancels where β is 1 and g_i and h_i are nearly equal.
        """
        if not isinstance(other, OuterProducts) or (other.layout, other.sizes) != (self.layout, self.sizes):
            return Dense(self.materialize(), "a difference").minus(other, coefficient)
        (left, right), (left2, right2) = self._arrays(), other._arrays()
        return OuterProducts(
            jnp.concatenate([left - left2, left2], axis=2),
            jnp.concatenate([right, right - coefficient.astype(right.dtype) * right2], axis=2),
            self.layout,
        )

    def mean(self) -> Array:
        return self.layout(_contract(*self._arrays()) / self.count)

    def squared_norms(self) -> Float[Array, " n"]:
        """‖g_i‖²: ‖a‖²‖b‖² for one position, else from t × t Gram matrices or the i × o matrix, whichever is less."""
        left, right = self._arrays()
        t = self.sizes[1]
        if t <= 2:  # sums over pairs, without a matrix product of two rows
            sums = jnp.zeros(left.shape[:2], left.dtype)
            for p, q in ((p, q) for p in range(t) for q in range(t)):
                sums += jnp.sum(left[:, :, p] * left[:, :, q], axis=2) * jnp.sum(
                    right[:, :, p] * right[:, :, q], axis=2
                )
            return sums.sum(axis=1)
        if self._pairs_are_less():
            products = einsum("nbti,nbsi->nbts", left, left) * einsum("nbto,nbso->nbts", right, right)
            return products.sum(axis=(1, 2, 3))
        return self.each(lambda block: jnp.sum(block**2))

    def centered(self) -> tuple["OuterProducts", Array]:
        centered, _, center = self._centered()
        return OuterProducts(centered.left, centered.right, self.layout), self.layout(center)

    def squared_deviations(self) -> Float[Array, " n"]:
        """‖g_i − ḡ‖², from centered factors, or from the centered i × o matrices where those are less work.

        The same matrices are formed where the sides vary but their products do not, and centering them is no help.
        """
        centered, shift, center = self._centered()

        def formed() -> Float[Array, " n"]:
            return self.each(lambda block: jnp.sum((block - (center + shift)) ** 2))

        if self._formed_is_less():
            return formed()
        norms, products = centered.squared_norms(), centered.inner_products(centered.layout(shift))
        deviations = norms - 2 * products + jnp.sum(shift**2)
        lost = norms.sum() > MAX_CANCELLATION * deviations.sum()
        return jax.lax.cond(lost, formed, lambda: deviations)

    def total_deviation(self) -> Float[Array, ""]:
        """Σ ‖g_i − ḡ‖² = Σ ‖g_i‖² − n‖ḡ‖²; where that loses digits, from the deviations themselves."""
        squares, mean = self.squared_norms().sum(), self.mean()
        smaller = self.count * jnp.sum(mean**2)
        return difference(squares, smaller, CHEAP_CANCELLATION, lambda: self.squared_deviations().sum())

    def weighted_deviation(self, weights: Float[Array, " n"]) -> Float[Array, ""]:
        weights = weights.astype(accumulation_dtype(self.left, self.right))
        shares = weights / weights.sum()
        if self._formed_is_less():
            _, shift, center = self._centered(shares)
            return jnp.sum(weights * self.each(lambda block: jnp.sum((block - (center + shift)) ** 2)))
        centered, shift, _ = self._balanced()._centered(shares)
        return jnp.sum(weights * centered.squared_norms()) - weights.sum() * jnp.sum(shift**2)

    def _balanced(self) -> "OuterProducts":
        """The same products from sides that are equally large in every example, the left one towards that of the first.

        Scales, such as 1/p_i of rare examples, may have made one side huge and the other tiny, and a mean of either
        would drown the others. Sides of either sign, whose products are alike, would have no mean.
        """
        left, right = self._arrays()
        a, b = (jnp.max(jnp.abs(side), axis=(1, 2, 3), initial=0, keepdims=True) for side in (left, right))
        both = (a > 0) & (b > 0)
        shift = jnp.sqrt(jnp.where(both, b / jnp.where(a > 0, a, jnp.ones_like(a)), jnp.ones_like(a)))
        along_first = jnp.sum(left * left[:1], axis=(1, 2, 3), keepdims=True)
        shift = jnp.where(along_first < 0, -shift, shift)
        return OuterProducts(left * shift, right / shift, self.layout)

    def _centered(self, shares: Float[Array, " n"] | None = None) -> tuple["OuterProducts", Array, Array]:
        """h_i = g_i − ĀᵀB̄ as factors of 2t positions, the mean of h, and ĀᵀB̄; means weighted by ``shares`` if given.

        AᵀB − ĀᵀB̄ = (A − Ā)ᵀB + Āᵀ(B − B̄), in which nothing cancels when all g_i are nearly equal, nor in its mean.
        """
        left, right = self._arrays()
        if shares is None:
            shares = jnp.full(self.count, 1 / self.count, left.dtype)
            mean_left, mean_right = left.mean(axis=0, keepdims=True), right.mean(axis=0, keepdims=True)
        else:
            mean_left, mean_right = (einsum("n,nbti->bti", shares, side)[None] for side in (left, right))
        constant = jnp.broadcast_to(mean_left, left.shape)
        centered = OuterProducts(
            jnp.concatenate([left - mean_left, constant], axis=2),
            jnp.concatenate([right, right - mean_right], axis=2),
            Layout(self.layout.base),
        )
        shift = _contract(centered.left, centered.right * shares[:, None, None, None])
        return centered, shift, _contract(mean_left, mean_right)

    def coordinate_deviations(self) -> Array:
        """Σ (g_i − ḡ)², coordinate by coordinate.

        With one position, Σg² − nḡ² = (A²)ᵀB² − nḡ² is one matrix product. Where that loses digits, because some mean
        is large against its deviations, the same is done with h = g − āb̄ᵀ, whose mean is small: two products more.
        Where that loses digits too, the centered gradients are summed one by one.
        """
        left, right = self._arrays()

        def one_by_one() -> Array:
            _, shift, center = self._centered()
            return self._sum(lambda block: (block - (center + shift)) ** 2)

        def centered() -> Array:
            squares, shift = self._centered_squares()
            return difference(squares, self.count * shift**2, MAX_CANCELLATION, one_by_one)

        if self.sizes[1] != 1:
            return self.layout(one_by_one())
        squares, mean = _contract(left**2, right**2), _contract(left, right / self.count)
        return self.layout(difference(squares, self.count * mean**2, CHEAP_CANCELLATION, centered))

    def _centered_squares(self) -> tuple[Array, Array]:
        """Σh² and the mean of h, for h_i = g_i − āb̄ᵀ = (a_i − ā)b_iᵀ + ā(b_i − b̄)ᵀ and a single position."""
        left, right = self._arrays()
        mean_left, mean_right = left.mean(axis=0, keepdims=True), right.mean(axis=0, keepdims=True)
        a, b = left - mean_left, right - mean_right
        column = mean_left[0].swapaxes(1, 2)  # ā, shape (b, i, 1)
        squares = _contract(a**2, right**2) + 2 * column * _contract(a, right * b)
        squares += column**2 * jnp.sum(b**2, axis=0)
        return squares, self._centered()[1]

    def second_moment(self) -> Array:
        """(1/n) Σ g_i², coordinate by coordinate; for one position (A²)ᵀB², one matrix product."""
        left, right = self._arrays()
        if self.sizes[1] == 1:
            return self.layout(_contract(left**2, right**2 / self.count))
        return self.layout(self._sum(jnp.square) / self.count)

    def inner_products(self, direction: Array) -> Float[Array, " n"]:
        """⟨g_i, v⟩ = Σ_t a_tᵀ V b_t."""
        left, right = self._arrays()
        b, _, i, o = self.sizes
        blocks = self.layout.adjoint(direction).reshape(b, i, o).astype(left.dtype)
        return jnp.sum(einsum("nbti,bio->nbto", left, blocks) * right, axis=(1, 2, 3))

    def gram(self, other: Factor) -> Float[Array, "n m"]:
        """⟨g_i, h_j⟩; for one position (AA'ᵀ)∘(BB'ᵀ), for two the sum over their pairs."""
        if not isinstance(other, OuterProducts) or other.layout != self.layout or other.sizes[0] != self.sizes[0]:
            return Dense(self.materialize()).gram(other)
        (left, right), (left2, right2) = self._arrays(), other._arrays()
        t, s = self.sizes[1], other.sizes[1]
        if t == s == 1 or ({t, s} <= {1, 2} and self._pairs_with(other)):
            return total([self._products(p, other, q) for p in range(t) for q in range(s)])
        if self._pairs_with(other):
            return jax.lax.map(lambda ab: _pair_products(ab[0], ab[1], left2, right2), (left, right))
        return Dense(self.materialize()).gram(other)

    def _products(self, p: int, other: "OuterProducts", q: int) -> Float[Array, "n m"]:
        """⟨g_i, h_j⟩ for position p of all g_i, and q of all h_j."""
        (left, right), (left2, right2) = self._arrays(), other._arrays()
        pairs = einsum("nbi,mbi->bnm", left[:, :, p], left2[:, :, q])
        return (pairs * einsum("nbo,mbo->bnm", right[:, :, p], right2[:, :, q])).sum(axis=0)

    def materialize(self) -> Array:
        left, right = self._arrays()
        if self.sizes[1] == 1:  # a broadcast is faster than a matrix product that contracts nothing
            blocks = left[:, :, 0, :, None] * right[:, :, 0, None, :]
        else:
            blocks = einsum("nbti,nbto->nbio", left, right)
        return jax.vmap(self.layout)(blocks)

    def _formed_is_less(self) -> bool:
        """Whether forming the i × o matrices is less work than the pairs of 2t positions that centered factors have."""
        _, t, i, o = self.sizes
        return 4 * t * (i + o) > i * o and t > 1

    def _pairs_are_less(self) -> bool:
        """Whether the t × t Gram matrices of both sides are less work than the i × o matrix."""
        _, t, i, o = self.sizes
        return t * (i + o) <= i * o

    def _pairs_with(self, other: "OuterProducts") -> bool:
        """The same, for the products of all examples with all others."""
        (_, t, i, o), s, n, m = self.sizes, other.sizes[1], self.count, other.count
        return n * m * t * s * (i + o) < (n * t + m * s + n * m) * i * o

    def flops(self) -> Flops:
        n, (b, t, i, o) = self.count, self.sizes
        product, pairs = 2 * n * b * t * i * o, 2 * n * b * t**2 * (i + o)
        return Flops(
            mean=product,
            squared_norms=pairs if t <= 2 or self._pairs_are_less() else product + 2 * n * b * i * o,
            second_moment=product if t == 1 else product + 2 * n * b * i * o,
            gram=n * pairs if t == 1 or self._pairs_with(self) else product + 2 * n**2 * b * i * o,
        )

    def describe(self) -> str:
        return f"outer products {self.left.shape} x {self.right.shape}"

    def each(self, function: Callable[[Array], Array]) -> Array:
        """``function`` of the (b, i, o) matrices of every example, a few examples at a time."""

        def one(pair: tuple[Array, Array]) -> Array:
            return function(einsum("bti,bto->bio", *pair))

        size = examples_at_a_time(math.prod(self.sizes))
        return jax.lax.map(one, self._arrays(), batch_size=None if size == 1 else size)

    def _sum(self, function: Callable[[Array], Array]) -> Array:
        """Σ ``function`` of the (b, i, o) matrices of every example."""
        b, _, i, o = self.sizes

        def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            return total + function(einsum("bti,bto->bio", *pair)), None

        def summed(sides: tuple[Array, Array]) -> Array:
            return jax.lax.scan(add, varying_like(sides, jnp.zeros((b, i, o), sides[0].dtype)), sides)[0]

        return in_blocks(summed, self._arrays())


def _contract(left: Float[Array, "n b t i"], right: Float[Array, "n b t o"]) -> Float[Array, "b i o"]:
    """Σ over examples and positions of the outer products, one matrix product for each block."""
    return in_blocks(lambda sides: _product(*sides), (left, right))


def _product(left: Array, right: Array) -> Array:
    n, b, t, i = left.shape
    if b == 1:
        return einsum("ri,ro->io", left.reshape(n * t, i), right.reshape(n * t, right.shape[3]))[None]
    return einsum("nbti,nbto->bio", left, right)


def _pair_products(left: Array, right: Array, left2: Array, right2: Array) -> Float[Array, " m"]:
    """⟨g, h_j⟩ for one example against m others, from t × s Gram matrices."""
    pairs = einsum("bti,mbsi->mbts", left, left2) * einsum("bto,mbso->mbts", right, right2)
    return pairs.sum(axis=(1, 2, 3))
