"""Numbers in units of a power of two: a product of four gradients leaves float32 where one of two does not.

That is the case from 1e9 on, and below 1e-10. To divide by a power of two rounds nothing, so that what is computed in
such a unit is the same number, bit for bit, and is there for gradients of any size. Where four are multiplied, all is
taken in a unit near its size: statistics have that of their gradients, and drawn values one of their own.

Results that are fourth powers themselves are told by :func:`leaves_range` where they cannot be held.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsgd._core.sums import accumulated, total

_FACTOR_OF_PRODUCTS = 2 * 6.25  # see the head of ``estimators/_monte_carlo.py``


def near(values: Array) -> Float[Array, ""]:
    """The largest power of two that is at most the largest size of some numbers; 1 where all are 0."""
    largest = jnp.max(jnp.abs(values))
    limits = jnp.finfo(largest.dtype)  # type: ignore[no-untyped-call]
    limit = -limits.minexp - 2  # of which the reciprocal is a number too
    exponent = jnp.clip(jnp.frexp(largest)[1] - 1, -limit, limit)
    return jnp.ldexp(jnp.ones_like(largest), jnp.where(largest > 0, exponent, 0))


def smallest_square(dtype: Any) -> float:
    """From where on the square of a number's last digit is known as well, so that no deviation from it is lost."""
    limits = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(limits.tiny) / float(limits.eps) ** 3


def root_mean_square(values: Array, *, axis: int | None = None) -> Array:
    """√(mean x²) of numbers whose squares may leave their range."""
    unit = near(values)
    return unit * jnp.sqrt(jnp.mean((values / unit) ** 2, axis=axis))


def squared_norm(tree: Any) -> Float[Array, ""]:
    """‖v‖² of a pytree v, of which no square is lost unless the result is."""
    leaves = [accumulated(leaf) for leaf in jax.tree.leaves(tree)]
    units = [near(leaf) if leaf.size else jnp.ones((), leaf.dtype) for leaf in leaves]
    return total([jnp.sum((leaf / unit) ** 2) * unit**2 for leaf, unit in zip(leaves, units, strict=True)])


def standard_deviation(values: Array, *, ddof: int) -> Float[Array, ""]:
    """√(Σ (x − x̄)²/(n − ddof)) of numbers whose squares may leave their range."""
    unit = near(values)
    return unit * jnp.std(values / unit, ddof=ddof)


def standard_error(terms: Float[Array, " r"], covariance_norm: Any) -> Float[Array, ""]:
    """That of a variance estimated from R drawn vectors e_r with E e = 0, from ‖e_r‖² and ‖Cov e‖_F.

    The root of s²/R + 12.5 ‖Cov e‖_F²/(R (R − 1)), with the factor that the head of ``estimators/_monte_carlo.py`` has.
    """
    of_terms = standard_deviation(terms, ddof=1) / len(terms) ** 0.5
    return jnp.hypot(of_terms, of_products(covariance_norm, len(terms)))


def of_products(covariance_norm: Any, num_draws: Any) -> Any:
    """The part of a standard error that is due to the products of different draws."""
    return covariance_norm * (_FACTOR_OF_PRODUCTS / (num_draws * (num_draws - 1))) ** 0.5


def leaves_range(in_units: Any, unit: Any, power: int) -> bool:
    """Whether numbers times a power of the unit cannot be held, where that is known: under a transformation it is not.

    The smallest may be lost, as next to the largest they are by rounding too.
    """
    if isinstance(in_units, jax.core.Tracer) or isinstance(unit, jax.core.Tracer):
        return False
    values, limits = np.abs(np.asarray(in_units, np.float64)), jnp.finfo(in_units.dtype)  # type: ignore[no-untyped-call]
    values = values[np.isfinite(values)]
    largest, log_unit = values.max(initial=0.0), power * np.log2(float(unit))
    if largest == 0:
        return False
    return not np.log2(float(limits.tiny)) <= np.log2(largest) + log_unit < np.log2(float(limits.max))


def require_squares(what: str, *trees: Any) -> None:
    """Raise if the sum of squares of numbers that are not 0 cannot be held, as far as they are known."""
    leaves = [leaf for leaf in jax.tree.leaves(trees) if leaf.size]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    largest = max((float(jnp.max(jnp.abs(leaf))) for leaf in leaves), default=0.0)
    dtype = max((jnp.float32, *(leaf.dtype for leaf in leaves)), key=lambda dtype: jnp.dtype(dtype).itemsize)
    limits, size = jnp.finfo(dtype), sum(leaf.size for leaf in leaves)  # type: ignore[no-untyped-call]
    small = 0 < largest < (float(limits.tiny) / float(limits.eps)) ** 0.5
    if small or largest >= (float(limits.max) / max(size, 1)) ** 0.5:
        side, way = ("underflow", "up") if small else ("overflow", "down")
        raise ValueError(
            f"squares of {what} {side} {jnp.dtype(dtype)}: scale the loss {way}, or use float64 parameters"
        )
