"""Both sides of ∇ E L = E ∇L for a loss and a law of the data, by quadrature.

F(θ) = E L(θ, X) is an integral over a uniform U of the loss at the quantile of U, so one midpoint rule serves every
law. F' and F'' are central differences of its quadrature, and E ∂L and E ∂²L are quadratures of ``jax.grad``'s
derivatives: where the two sides differ, exchange fails, for the program that ``jax.grad`` differentiates.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsgd._core import validate


def midpoints(num_points: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Points u in (0, 1) and weights that integrate over a uniform U, with many points near both ends.

    The midpoint rule in t for u = t²(3 − 2t): a quantile function that grows without bound at 0 or 1 is tamed. The
    error is O(1/n²) for smooth integrands, O(1/n) across a jump.

    >>> u, weights = midpoints(1000)
    >>> round(float(np.sum(weights / np.sqrt(u))), 4)  # ∫ du/√u = 2, with a pole at 0
    2.0
    """
    validate.positive_integer(num_points=num_points)
    t = (np.arange(num_points) + 0.5) / num_points
    return t**2 * (3 - 2 * t), 6 * t * (1 - t) / num_points


def derivatives(
    loss_fn: Callable[[Any, Any], Any],
    quantile: Callable[[Any], Any],
    theta: float,
    *,
    num_points: int = 2**18,
    step: float = 1e-2,
) -> Float[Array, "2 2"]:
    """The first two derivatives of the expectation, and the expectations of the first two derivatives, by quadrature.

    The derivatives of F(θ) = E L(θ, X) are central differences of its quadrature; those of L are ``jax.grad``'s.

    Returns:
        [[F', F''], [E ∂L, E ∂²L]] at ``theta``.

    >>> from jaxsgd import exchange
    >>> loss = next(loss for loss in exchange.LOSSES if loss.name == "absolute")
    >>> print(np.round(np.asarray(derivatives(loss.loss_fn, loss.quantile, 0.0), float), 2) + 0.0)  # F'' = 2p
    [[0.  0.8]
     [0.  0. ]]
    """
    u, weights = midpoints(num_points)
    dtype = jnp.zeros(()).dtype
    below_one = 1 - float(np.finfo(np.dtype(dtype)).epsneg)  # rounded to 1, a point would have an infinite quantile
    x = jnp.asarray(quantile(jnp.minimum(jnp.asarray(u, dtype), jnp.asarray(below_one, dtype))))

    def mean(fn: Callable[[Any, Any], Any], at: Any) -> Any:
        return jnp.sum(jnp.asarray(weights, dtype) * jax.vmap(fn, in_axes=(None, 0))(at, x))

    first = jax.grad(loss_fn)

    def found(at: Any) -> Any:
        low, middle, high = (mean(loss_fn, at + shift) for shift in (-step, 0.0, step))
        of_mean = jnp.stack([(high - low) / (2 * step), (high - 2 * middle + low) / step**2])
        return jnp.stack([of_mean, jnp.stack([mean(first, at), mean(jax.grad(first), at)])])

    return jax.jit(found)(jnp.asarray(theta, dtype))
