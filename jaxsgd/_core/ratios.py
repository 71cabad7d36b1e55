"""Intervals for ratios of two means, as those of a noise scale."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import stdtrit

MANY = 1e4  # degrees of freedom, from which on they make no difference


def student(alpha: float, dtype: Any) -> tuple[Array, Array]:
    """Quantiles of Student's distribution that |t| exceeds with probability ``alpha``, as a function of 1/freedom."""
    inverses = np.linspace(0, 1, 1025)
    quantiles = stdtrit(1 / np.maximum(inverses, 1 / MANY), 1 - alpha / 2)
    return jnp.asarray(inverses, dtype), jnp.asarray(quantiles, dtype)


def fieller(G: Array, T: Array, covariance: Float[Array, "2 2"], z: Any) -> tuple[Array, Array]:
    """The interval for B = 1/ρ from that of all ρ with (G − ρT)² ≤ z² (V_G − 2ρC + ρ²V_T).

    That is leading · ρ² − 2 half · ρ + last ≤ 0. Below ρ = 0 there is nothing: where 0 is in the interval, B ends at
    infinity. Unless T is significant, every ρ from some point on is in it, and B starts at 0.
    """
    (V_G, C), (_, V_T) = z**2 * covariance
    leading, half, last = T**2 - V_T, G * T - C, G**2 - V_G
    root = jnp.sqrt(jnp.maximum(half**2 - leading * last, 0))
    bounded = leading > 0
    largest, smallest = (half + root) / jnp.where(bounded, leading, 1), last / (half + root)
    low, high = reciprocal(largest), reciprocal(smallest)
    return jnp.where(bounded, low, 0), jnp.where(last > 0, high, jnp.inf)


def reciprocal(rho: Array) -> Array:
    """1/ρ, and infinity for ρ ≤ 0."""
    return jnp.where(rho > 0, 1 / jnp.where(rho > 0, rho, 1), jnp.inf)
