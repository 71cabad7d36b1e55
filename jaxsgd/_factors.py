"""What the gradients of n examples with respect to one parameter are kept as, and the algebra on it.

    Outer    g_i = Σ_t a_it b_itᵀ, as a dense layer, a convolution or a recurrence gives it
    Dense    g_i itself
    Sparse   g_i = Σ_t e_(k_it) r_itᵀ, rows added to a table, as an embedding gives it (in ``_sparse``)

All have the same methods, in which nothing of n times the parameter's size is formed unless that is the cheapest exact
form, and then a few examples at a time. Sums are accumulated in float32 at least. Imports nothing of the package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

einsum = partial(jnp.einsum, precision="highest")


@dataclass(frozen=True)
class Layout:
    """How an array of shape ``base`` becomes the gradient: steps that move entries or insert zeros, never mix them.

    Squares, norms and inner products can therefore be taken before or after.
    """

    base: tuple[int, ...]
    steps: tuple[tuple[str, Any], ...] = ()

    def then(self, name: str, argument: Any) -> "Layout":
        """This layout with one more step."""
        return Layout(self.base, (*self.steps, (name, argument)))

    def over(self, length: int) -> "Layout":
        """This layout under one more leading axis."""
        return Layout((length, *self.base), (("each", self.steps),) if self.steps else ())

    def __call__(self, array: Array) -> Array:
        """Lay out one array, of any shape with the size of ``base``."""
        return _lay_out(self.steps, array.reshape(self.base))

    def adjoint(self, array: Array) -> Array:
        """Read an array of the gradient's shape back into the shape ``base``."""
        if not self.steps:
            return array.reshape(self.base)
        base = jax.ShapeDtypeStruct(self.base, array.dtype)  # type: ignore[no-untyped-call]
        (out,) = jax.linear_transpose(self, base)(array)
        return out


def _lay_out(steps: tuple[tuple[str, Any], ...], array: Array) -> Array:
    for name, argument in steps:
        match name:
            case "transpose":
                array = array.transpose(argument)
            case "reshape":
                array = array.reshape(argument)
            case "reverse":
                array = jax.lax.rev(array, argument)
            case "pad":
                array = jax.lax.pad(array, jnp.zeros((), array.dtype), argument)
            case "each":
                array = jax.vmap(partial(_lay_out, argument))(array)
    return array


def accumulation_dtype(*arrays: Array) -> Any:
    """The widest dtype of floating-point arrays, float32 at least: what their sums are accumulated in."""
    return max((jnp.float32, *(array.dtype for array in arrays)), key=lambda dtype: jnp.dtype(dtype).itemsize)


def accumulated(array: Array) -> Array:
    """The array in the dtype that its sums are accumulated in."""
    return array.astype(accumulation_dtype(array))


def total(parts: Sequence[Array]) -> Array:
    """The sum of arrays whose dtypes may differ."""
    dtype = accumulation_dtype(*parts)
    return sum((part.astype(dtype) for part in parts[1:]), parts[0].astype(dtype))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense:
    """The gradients themselves: ``value``, shape (n, *shape); ``why`` no cheaper form was found."""

    value: Any
    why: str = field(default="", metadata={"static": True})

    @property
    def count(self) -> int:
        """The number of examples, n."""
        return int(self.value.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return tuple(self.value.shape[1:])

    def _rows(self) -> Float[Array, "n p"]:
        return accumulated(self.value).reshape(self.count, -1)

    def weighted_sum(self, weights: Float[Array, " n"]) -> Array:
        """Σ w_i g_i."""
        rows = self._rows()
        return einsum("n,np->p", weights.astype(rows.dtype), rows).reshape(self.shape)

    def scaled(self, scales: Float[Array, " n"]) -> "Dense":
        """The gradients s_i g_i."""
        rows = self._rows()
        return Dense((rows * scales.astype(rows.dtype)[:, None]).reshape(self.value.shape), self.why)

    def mean(self) -> Array:
        """(1/n) Σ g_i."""
        return _average(self._rows()).reshape(self.shape)

    def squared_norms(self) -> Float[Array, " n"]:
        """‖g_i‖²."""
        return jnp.sum(self._rows() ** 2, axis=1)

    def squared_deviations(self) -> Float[Array, " n"]:
        """‖g_i − ḡ‖²."""
        rows = self._rows()
        return jnp.sum((rows - _average(rows)[None]) ** 2, axis=1)

    def total_deviation(self) -> Float[Array, ""]:
        """Σ ‖g_i − ḡ‖²."""
        return self.squared_deviations().sum()

    def weighted_deviation(self, weights: Float[Array, " n"]) -> Float[Array, ""]:
        """Σ w_i ‖g_i − ḡ_w‖² for the weighted mean ḡ_w."""
        rows = self._rows()
        weights = weights.astype(rows.dtype)
        mean = einsum("n,np->p", weights / weights.sum(), rows)
        return einsum("n,np->", weights, (rows - mean[None]) ** 2)

    def coordinate_deviations(self) -> Array:
        """Σ (g_i − ḡ)², coordinate by coordinate."""
        rows = self._rows()
        return self.count * _average((rows - _average(rows)[None]) ** 2).reshape(self.shape)

    def second_moment(self) -> Array:
        """(1/n) Σ g_i², coordinate by coordinate."""
        return _average(self._rows() ** 2).reshape(self.shape)

    def inner_products(self, direction: Array) -> Float[Array, " n"]:
        """⟨g_i, v⟩."""
        rows = self._rows()
        return einsum("np,p->n", rows, direction.reshape(-1).astype(rows.dtype))

    def gram(self, other: Any) -> Float[Array, "n m"]:
        """⟨g_i, h_j⟩."""
        rows = self._rows()
        return einsum("np,mp->nm", rows, accumulated(other.materialize()).reshape(other.count, -1))

    def materialize(self) -> Array:
        """All g_i, shape (n, *shape)."""
        return self.value

    def describe(self) -> str:
        """How the gradients are kept, for people."""
        return f"dense {self.value.shape}" + (f": {self.why}" if self.why else "")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outer:
    """Sums of outer products: ``left`` a, shape (n, b, t, i), and ``right`` b, shape (n, b, t, o).

    The gradient of example n is ``layout`` of Σ_t a_ntᵀ b_nt, one matrix (i, o) for each of b blocks.
    """

    left: Any
    right: Any
    layout: Layout = field(metadata={"static": True})

    @property
    def count(self) -> int:
        """The number of examples, n."""
        return int(self.left.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
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

    def weighted_sum(self, weights: Float[Array, " n"]) -> Array:
        """Σ w_i g_i, one matrix product over examples and positions."""
        left, right = self._arrays()
        return self.layout(_contract(left, right * weights.astype(right.dtype)[:, None, None, None]))

    def scaled(self, scales: Float[Array, " n"]) -> "Outer":
        """The gradients s_i g_i."""
        left, right = self._arrays()
        return Outer(left, right * scales.astype(right.dtype)[:, None, None, None], self.layout)

    def mean(self) -> Array:
        """(1/n) Σ g_i; the smaller side is divided, not the result."""
        left, right = self._arrays()
        return self.layout(_contract(left, right / self.count))

    def squared_norms(self) -> Float[Array, " n"]:
        """‖g_i‖²: ‖a‖²‖b‖² for one position, else from t × t Gram matrices or the i × o matrix, whichever is less."""
        left, right = self._arrays()
        _, t, i, o = self.sizes
        if t <= 2:  # sums over pairs, without a matrix product of two rows
            sums = jnp.zeros(left.shape[:2], left.dtype)
            for p, q in ((p, q) for p in range(t) for q in range(t)):
                sums += jnp.sum(left[:, :, p] * left[:, :, q], axis=2) * jnp.sum(
                    right[:, :, p] * right[:, :, q], axis=2
                )
            return sums.sum(axis=1)
        if t * (i + o) <= i * o:
            products = einsum("nbti,nbsi->nbts", left, left) * einsum("nbto,nbso->nbts", right, right)
            return products.sum(axis=(1, 2, 3))
        return self._each(lambda block: jnp.sum(block**2))

    def squared_deviations(self) -> Float[Array, " n"]:
        """‖g_i − ḡ‖², from centered factors, or from the centered i × o matrices where those are less work."""
        _, t, i, o = self.sizes
        if 4 * t * (i + o) > i * o and t > 1:
            left, right = self._arrays()
            mean = _contract(left, right / self.count)
            return self._each(lambda block: jnp.sum((block - mean) ** 2))
        centered, shift = self._centered()
        products = centered.inner_products(centered.layout(shift))
        return centered.squared_norms() - 2 * products + jnp.sum(shift**2)

    def total_deviation(self) -> Float[Array, ""]:
        """Σ ‖g_i − ḡ‖²."""
        _, t, i, o = self.sizes
        if 4 * t * (i + o) > i * o and t > 1:
            return self.squared_deviations().sum()
        centered, shift = self._centered()
        return centered.squared_norms().sum() - self.count * jnp.sum(shift**2)

    def weighted_deviation(self, weights: Float[Array, " n"]) -> Float[Array, ""]:
        """Σ w_i ‖g_i − ḡ_w‖² for the weighted mean ḡ_w."""
        left, right = self._arrays()
        weights = weights.astype(right.dtype)
        shares = weights / weights.sum()
        _, t, i, o = self.sizes
        if 4 * t * (i + o) > i * o and t > 1:
            mean = _contract(left, right * shares[:, None, None, None])
            return jnp.sum(weights * self._each(lambda block: jnp.sum((block - mean) ** 2)))
        centered, shift = self._centered(shares)
        return jnp.sum(weights * centered.squared_norms()) - weights.sum() * jnp.sum(shift**2)

    def _centered(self, shares: Float[Array, " n"] | None = None) -> tuple["Outer", Array]:
        """h_i = g_i − ĀᵀB̄ as factors of 2t positions, and the mean of h, with means weighted by ``shares`` if given.

        AᵀB − ĀᵀB̄ = (A − Ā)ᵀB + Āᵀ(B − B̄), in which nothing cancels when all g_i are nearly equal.
        """
        left, right = self._arrays()
        if shares is None:
            mean_left, mean_right = left.mean(axis=0, keepdims=True), right.mean(axis=0, keepdims=True)
            mean = _contract(left, right / self.count)
        else:
            mean_left, mean_right = (einsum("n,nbti->bti", shares, side)[None] for side in (left, right))
            mean = _contract(left, right * shares[:, None, None, None])
        constant = jnp.broadcast_to(mean_left, left.shape)
        centered = Outer(
            jnp.concatenate([left - mean_left, constant], axis=2),
            jnp.concatenate([right, right - mean_right], axis=2),
            Layout(self.layout.base),
        )
        return centered, mean - _contract(mean_left, mean_right)

    def coordinate_deviations(self) -> Array:
        """Σ (g_i − ḡ)², coordinate by coordinate.

        With one position this is (A²)ᵀB² − nḡ², one matrix product; only where a coordinate's mean is so large
        against its deviations that digits would be lost are the centered gradients summed one by one.
        """
        left, right = self._arrays()
        mean = _contract(left, right / self.count)
        if self.sizes[1] > 1:
            return self.layout(self._sum(lambda block: (block - mean) ** 2))
        squares = _contract(left**2, right**2)
        deviations = squares - self.count * mean**2
        cancels = jnp.any(squares > _MAX_CANCELLATION * deviations)
        safe = jax.lax.cond(cancels, lambda: self._sum(lambda block: (block - mean) ** 2), lambda: deviations)
        return self.layout(safe)

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

    def gram(self, other: Any) -> Float[Array, "n m"]:
        """⟨g_i, h_j⟩; for one position (AA'ᵀ)∘(BB'ᵀ)."""
        if not isinstance(other, Outer) or other.layout != self.layout or other.sizes[0] != self.sizes[0]:
            return Dense(self.materialize()).gram(other)
        (left, right), (left2, right2) = self._arrays(), other._arrays()
        (_, t, i, o), s = self.sizes, other.sizes[1]
        if t == s == 1:
            pairs = einsum("nbti,mbti->bnm", left, left2) * einsum("nbto,mbto->bnm", right, right2)
            return pairs.sum(axis=0)
        n, m = self.count, other.count
        if n * m * t * s * (i + o) < (n * t + m * s + n * m) * i * o:
            return jax.lax.map(lambda ab: _pair_products(ab[0], ab[1], left2, right2), (left, right))
        return Dense(self.materialize()).gram(other)

    def materialize(self) -> Array:
        """All g_i, shape (n, *shape)."""
        left, right = self._arrays()
        if self.sizes[1] == 1:  # a broadcast is faster than a matrix product that contracts nothing
            blocks = left[:, :, 0, :, None] * right[:, :, 0, None, :]
        else:
            blocks = einsum("nbti,nbto->nbio", left, right)
        return jax.vmap(self.layout)(blocks)

    def describe(self) -> str:
        """How the gradients are kept, for people."""
        return f"outer products {self.left.shape} x {self.right.shape}"

    def _each(self, function: Callable[[Array], Array]) -> Array:
        """``function`` of the (b, i, o) matrices of every example, a few examples at a time."""
        b, _, i, o = self.sizes

        def one(pair: tuple[Array, Array]) -> Array:
            return function(einsum("bti,bto->bio", *pair))

        return jax.lax.map(one, self._arrays(), batch_size=examples_at_a_time(b * i * o))

    def _sum(self, function: Callable[[Array], Array]) -> Array:
        """Σ ``function`` of the (b, i, o) matrices of every example."""
        b, _, i, o = self.sizes
        left, right = self._arrays()

        def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            return total + function(einsum("bti,bto->bio", *pair)), None

        return jax.lax.scan(add, jnp.zeros((b, i, o), left.dtype), (left, right))[0]


_MAX_CANCELLATION = 64.0  # Σg² over Σ(g − ḡ)²: in float32, this loses 6 bits of 24
_ENTRIES_AT_A_TIME = {"cpu": 2**18}  # what stays in a core's cache; on accelerators, what fills the device
_ENTRIES_ON_ACCELERATORS = 2**26


def examples_at_a_time(entries: int) -> int:
    """How many examples of so many entries each to work on together on this backend."""
    budget = _ENTRIES_AT_A_TIME.get(jax.default_backend(), _ENTRIES_ON_ACCELERATORS)
    return max(1, budget // max(entries, 1))


def _average(rows: Float[Array, "n p"]) -> Float[Array, " p"]:
    """The mean row, as a matrix product: XLA's CPU backend reduces over a leading axis one stride at a time."""
    count = rows.shape[0]
    return einsum("n,np->p", jnp.full(count, 1 / count, rows.dtype), rows)


def _contract(left: Float[Array, "n b t i"], right: Float[Array, "n b t o"]) -> Float[Array, "b i o"]:
    """Σ over examples and positions of the outer products, one matrix product for each block."""
    n, b, t, i = left.shape
    if b == 1:
        return einsum("ri,ro->io", left.reshape(n * t, i), right.reshape(n * t, right.shape[3]))[None]
    return einsum("nbti,nbto->bio", left, right)


def _pair_products(left: Array, right: Array, left2: Array, right2: Array) -> Float[Array, " m"]:
    """⟨g, h_j⟩ for one example against m others, from t × s Gram matrices."""
    pairs = einsum("bti,mbsi->mbts", left, left2) * einsum("bto,mbso->mbts", right, right2)
    return pairs.sum(axis=(1, 2, 3))
